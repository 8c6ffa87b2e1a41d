from mmrt.core._c cimport mmrt_reader


cdef mmrt_reader reader_named(str name) except *
