"""What arena.pyx and pool.pyx share: how a size is read and how memory is shown.

In: an argument, or memory. Out: a size, or a filled-in view. The rule that lives only here: the
words of the buffer protocol for writable bytes in one row.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES

cdef extern from *:
    """
    static char openbr_byte[] = "B";  /* an unsigned byte */

    /* The value of a plain int of one digit, which is every usual size; else 0 or less. */
    static inline Py_ssize_t openbr_small_int(PyObject *n) {
        if (!PyLong_CheckExact(n)) return -1;
    #if PY_VERSION_HEX >= 0x030C0000
        if (!PyUnstable_Long_IsCompact((PyLongObject *)n)) return -1;
        return PyUnstable_Long_CompactValue((PyLongObject *)n);
    #else
        return Py_SIZE(n) == 1 ? (Py_ssize_t)((PyLongObject *)n)->ob_digit[0] : -1;
    #endif
    }
    """
    char* openbr_byte
    Py_ssize_t openbr_small_int(object n) noexcept


cdef inline Py_ssize_t unusual_size_from(object n) except -1:
    """The argument n where openbr_small_int gave no size: from 1 to MAX_BYTES, or an exception."""
    from openbr._native.limits import MAX_BYTES, parse_whole

    return parse_whole("n", n, 1, MAX_BYTES)


cdef inline void show(
    Py_buffer* view, object owner, char* start, Py_ssize_t* size, int flags
) noexcept:
    """Fill in a view of `size` bytes, which must stay where it is as long as the view exists."""
    view.obj = owner
    view.buf = start
    view.len = size[0]
    view.itemsize = 1
    view.readonly = 0
    view.ndim = 1
    view.format = openbr_byte if flags & PyBUF_FORMAT else NULL
    view.shape = size if flags & PyBUF_ND else NULL
    view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL
