"""What this kernel offers to this process, as asked of it."""

from mmrt._c cimport (
    MMRT_ADVICE_COUNT, MMRT_CALL_COUNT, MMRT_OK, MMRT_UNSUPPORTED, mmrt_advice, mmrt_advice_known,
    mmrt_advice_name, mmrt_advice_since, mmrt_call, mmrt_call_name, mmrt_call_probe,
    mmrt_call_since, mmrt_status,
)


def advice():
    """Each advice on mapped pages -> "available" or why not."""
    cdef int i
    return {
        mmrt_advice_name(<mmrt_advice> i).decode():
        "available" if mmrt_advice_known(<mmrt_advice> i) else _lacking(
            mmrt_advice_since(<mmrt_advice> i)
        )
        for i in range(MMRT_ADVICE_COUNT)
    }


def calls():
    """System calls that not every kernel has -> "available" or why not."""
    cdef int i
    cdef mmrt_status status
    found = {}
    for i in range(MMRT_CALL_COUNT):
        status = mmrt_call_probe(<mmrt_call> i)
        if status == MMRT_OK:
            state = "available"
        elif status == MMRT_UNSUPPORTED:
            state = _lacking(mmrt_call_since(<mmrt_call> i))
        else:
            state = "forbidden to this process"
        found[mmrt_call_name(<mmrt_call> i).decode()] = state
    return found


cdef str _lacking(const char *since):
    return f"not in this kernel (Linux has it since {since.decode()}, where it is built in)"
