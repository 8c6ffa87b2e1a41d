# dequantize() of n_bytes at `blocks`.
cdef object unpack(str type, const unsigned char *blocks, Py_ssize_t n_bytes, Py_ssize_t n_elements)
