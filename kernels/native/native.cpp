// The kernels behind compression/: a Python module of the stable ABI, without torch and without OpenMP. Buffers in, buffers
// out; the interpreter lock is released while a kernel runs. `kernels/README.md` says what every kernel computes.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "crc32.h"
#include "pool.h"

namespace {

constexpr int32_t MAGNITUDE = 0x7FFFFFFF, INFINITE = 0x7F800000;
constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, half to even, in the low bits
constexpr float SMALL = 0x1p-100f, UP = 0x1p64f;

// Quotients that share the bits above KEY_SHIFT have at most one midpoint of levels among them. Below FIRST_KEY, 2^-22, all
// belong to zero.
constexpr int32_t KEY_SHIFT = 17, LOW_BITS = (1 << KEY_SHIFT) - 1, FIRST_KEY = (127 - 22) << 6, KEYS = (22 << 6) + 1;
constexpr int32_t NEAR = 8;  // units in the last place by which a rounded quotient may be off, and more
constexpr int32_t ZERO = 127, TOP = 128;  // the code of zero; the index of 1.0 among the magnitudes
constexpr float EDGE = 0x1p-13f;  // how near a half an index before rounding may be and be trusted
constexpr float LEAST = 1.5f * 0x1p-31f;  // stands for all quotients below it, zero included

inline int32_t bits_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Blocks [first, last) of `n` elements; the last block of all may be shorter.
struct Part {
    size_t n, block, first, last;

    size_t length(size_t at) const { return std::min(block, n - at * block); }
};

inline float from_bfloat16(uint16_t bits) { return float_of(static_cast<int32_t>(static_cast<uint32_t>(bits) << 16)); }

struct Dynamic {
    float levels[256];
    double middles[TOP];   // between the magnitudes i and i + 1
    int32_t buckets[KEYS];  // by key: the lowest index << KEY_SHIFT | the low bits of the midpoint inside, all ones if none

    // By octave from 2^-31 on, for the decade of its lower end: the index is round(min(slope * quotient + offset, last)) up
    // to the quotient `next`, and that of the next octave's decade from there on.
    float next[32], slope[32], offset[32], last[32];
} dynamic;

constexpr int NF4 = 16;  // levels

struct NormalFloat {
    float levels[NF4], middles[NF4 - 1];
} nf4;

constexpr size_t AHEAD = 512;  // elements: how far before its writing memory is asked for

constexpr size_t MATMUL_ROWS = 8, MATMUL_STEP = 64;  // the most rows of one call; what blocks and rows are multiples of

struct Matmul {
    size_t rows, in, out, block;
};

void set_nf4_levels(const float* levels) {
    std::memcpy(nf4.levels, levels, sizeof nf4.levels);
    for (int i = 0; i + 1 < NF4; ++i) nf4.middles[i] = (levels[i] + levels[i + 1]) / 2;
}

// The decades of the code: 0 is zero alone, 1 to 7 have 1 to 64 levels at equal distances, 8 is one alone. A line through a
// decade's levels is a half beyond its last index where the next decade begins, and so are the lines chosen for zero and
// one; `next` lies on the side of the line that is.
void set_decades() {
    for (int octave = 0; octave < 32; ++octave) {
        const double start = std::ldexp(1.0, octave - 31), end = 2 * start;
        int decade = 0;
        dynamic.next[octave] = HUGE_VALF;
        for (int32_t first = 1; first <= TOP; first *= 2) {  // the index at which a decade begins
            const double middle = dynamic.middles[first - 1];
            decade += middle < start;
            if (middle >= start && middle < end)
                dynamic.next[octave] = static_cast<float>(middle * (first == TOP ? 1 - 0x1p-21 : 1 + 0x1p-21));
        }
        double slope, offset, last = 0;
        if (decade == 0) {
            slope = 0.5 / dynamic.middles[0];
            offset = 0;
        } else if (decade == 8) {
            slope = 0.5 / (1 - dynamic.middles[TOP - 1]);
            offset = TOP - slope;
            last = TOP;
        } else {
            const int32_t first = 1 << (decade - 1);
            slope = first * std::pow(10.0, 7 - decade) / 0.9;
            offset = first * 0.8 / 0.9 - 0.5;
            last = 2 * first - 1;
        }
        dynamic.slope[octave] = static_cast<float>(slope);
        dynamic.offset[octave] = static_cast<float>(offset);
        dynamic.last[octave] = static_cast<float>(last);
    }
}

void set_levels(const float* levels) {
    std::memcpy(dynamic.levels, levels, sizeof dynamic.levels);
    for (int i = 0; i < TOP; ++i)
        dynamic.middles[i] = (static_cast<double>(levels[ZERO + i]) + static_cast<double>(levels[ZERO + i + 1])) / 2;
    for (int32_t key = 0; key < KEYS; ++key) {
        const int32_t first = (FIRST_KEY + key) << KEY_SHIFT;
        const double start = float_of(first);
        int32_t index = 0;
        while (index < TOP && dynamic.middles[index] < start) ++index;
        const int32_t middle = index < TOP ? bits_of(static_cast<float>(dynamic.middles[index])) : INFINITE;
        dynamic.buckets[key] = index << KEY_SHIFT | (middle >> KEY_SHIFT == first >> KEY_SHIFT ? middle & LOW_BITS : LOW_BITS);
    }
    set_decades();
}

namespace plain {
#define LANES 0
#include "lanes.h"
#undef LANES
}  // namespace plain

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#define LANES 2
#include "lanes.h"
#undef LANES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prfchw,prefer-vector-width=512")
namespace avx512 {
#define LANES 512
#include "lanes.h"
#undef LANES
}  // namespace avx512
#pragma GCC pop_options
#endif

const char* const SETS[] = {"plain", "avx2", "avx512"};

bool supports(int set) {
#if defined(__x86_64__)
    if (set == 1) return __builtin_cpu_supports("avx2");
    if (set == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return set == 0;
}

int chosen = 0;

// A kernel, compiled for the chosen instruction set.
#if defined(__x86_64__)
#define CHOSEN(kernel) (chosen == 2 ? avx512::kernel : chosen == 1 ? avx2::kernel : plain::kernel)
#else
#define CHOSEN(kernel) plain::kernel
#endif

// ---- Python

// `count` elements of `size` bytes of a Python object, given back at the end; an exception is set if it has others.
class Buffer {
public:
    Buffer(PyObject* object, bool writable, size_t count, size_t size, const char* what, size_t aligned = 1) {
        if (PyErr_Occurred()) return;
        held_ = PyObject_GetBuffer(object, &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) == 0;
        if (!held_) return;
        if (static_cast<size_t>(view_.len) / size != count || static_cast<size_t>(view_.len) % size != 0)
            PyErr_Format(PyExc_ValueError, "%s: %zd bytes came; wanted %zu of %zu", what, view_.len, count, size);
        else if (count != 0 && reinterpret_cast<uintptr_t>(view_.buf) % std::max(size, aligned) != 0)
            PyErr_Format(PyExc_ValueError, "%s: not aligned to %zu bytes", what, std::max(size, aligned));
    }
    ~Buffer() {
        if (held_) PyBuffer_Release(&view_);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    template <typename T>
    T* as() const {
        return static_cast<T*>(view_.buf);
    }

private:
    Py_buffer view_{};
    bool held_ = false;
};

constexpr size_t PIECE = 1 << 16;  // elements at least that are worth a thread's while

// Calls `kernel(part)` over all blocks, from up to `threads` threads; the sum of what it returns.
template <typename Kernel>
size_t over_blocks(size_t n, size_t block, size_t threads, Kernel kernel) {
    const size_t blocks = (n + block - 1) / block;
    const size_t pieces = std::max<size_t>(1, std::min({blocks, n / PIECE, threads * 4}));
    std::atomic<size_t> total{0};
    Pool::instance().run(threads, pieces, [&](size_t piece) {
        total += kernel(Part{n, block, blocks * piece / pieces, blocks * (piece + 1) / pieces});
    });
    return total;
}

// A blockwise code: its kernels, how many bytes a scale has, and how many elements' codes share a byte.
struct Code {
    const char* name;
    size_t scale_bytes, elements_a_byte;
    size_t (*encode)(const float* values, void* codes, void* scales, const Part&);
    size_t (*decode)(const void* codes, const void* scales, float* values, const Part&);

    size_t code_bytes(size_t n) const { return (n + elements_a_byte - 1) / elements_a_byte; }
};

const Code CODES[] = {
    {"linear", 2, 1,
     [](const float* values, void* codes, void* scales, const Part& part) {
         return CHOSEN(linear_encode)(values, static_cast<int8_t*>(codes), static_cast<uint16_t*>(scales), part);
     },
     [](const void* codes, const void* scales, float* values, const Part& part) {
         return CHOSEN(linear_decode)(
             static_cast<const int8_t*>(codes), static_cast<const uint16_t*>(scales), values, part);
     }},
    {"dynamic", 4, 1,
     [](const float* values, void* codes, void* scales, const Part& part) {
         return CHOSEN(dynamic_encode)(values, static_cast<uint8_t*>(codes), static_cast<float*>(scales), part);
     },
     [](const void* codes, const void* scales, float* values, const Part& part) {
         return CHOSEN(dynamic_decode)(static_cast<const uint8_t*>(codes), static_cast<const float*>(scales), values, part);
     }},
    {"nf4", 4, 2,
     [](const float* values, void* codes, void* scales, const Part& part) {
         return CHOSEN(nf4_encode)(values, static_cast<uint8_t*>(codes), static_cast<float*>(scales), part);
     },
     [](const void* codes, const void* scales, float* values, const Part& part) {
         return CHOSEN(nf4_decode)(static_cast<const uint8_t*>(codes), static_cast<const float*>(scales), values, part);
     }},
};

// The code of this name, if it can code so many elements in such blocks; else an exception is set.
const Code* code_for(const char* name, Py_ssize_t n, Py_ssize_t block, Py_ssize_t threads) {
    for (const Code& code : CODES) {
        if (std::strcmp(code.name, name) != 0) continue;
        if (n >= 0 && block >= 1 && threads >= 1 && block % static_cast<Py_ssize_t>(code.elements_a_byte) == 0) return &code;
        PyErr_SetString(PyExc_ValueError,
                        "elements must not be negative; elements a block and threads must be positive, and a block whole "
                        "bytes of codes");
        return nullptr;
    }
    PyErr_Format(PyExc_ValueError, "there is no code %s", name);
    return nullptr;
}

// The message of a tensor in one piece, made where it stays: header, scales, codes, and within the header the checksum of
// all of it, taken while those four bytes are as they came.
PyObject* py_pack(PyObject*, PyObject* args) {
    const char* name;
    PyObject *head, *object;
    Py_ssize_t checksum_at, n, block, threads;
    if (!PyArg_ParseTuple(args, "sOnOnnn", &name, &head, &checksum_at, &object, &n, &block, &threads)) return nullptr;
    const Code* code = code_for(name, n, block, threads);
    if (code == nullptr) return nullptr;
    const Py_ssize_t scales = (n + block - 1) / block * static_cast<Py_ssize_t>(code->scale_bytes);
    const Py_ssize_t codes = static_cast<Py_ssize_t>(code->code_bytes(n));
    const Py_ssize_t size = PyBytes_Size(head);
    if (size < 0) return nullptr;
    if (checksum_at < 0 || checksum_at + 4 > size || size % 4 != 0) {
        PyErr_Format(PyExc_ValueError, "a header of %zd bytes has no checksum at %zd", size, checksum_at);
        return nullptr;
    }
    const Buffer values(object, false, n, sizeof(float), "values");
    if (PyErr_Occurred()) return nullptr;
    PyObject* message = PyBytes_FromStringAndSize(nullptr, size + scales + codes);
    if (message == nullptr) return nullptr;
    uint8_t* bytes = reinterpret_cast<uint8_t*>(PyBytes_AsString(message));
    std::memcpy(bytes, PyBytes_AsString(head), size);
    size_t bad;
    Py_BEGIN_ALLOW_THREADS;
    bad = over_blocks(n, block, threads, [&](const Part& part) {
        return code->encode(values.as<const float>(), bytes + size + scales, bytes + size, part);
    });
    const uint32_t checksum = crc32(bytes, size + scales + codes);
    for (int i = 0; i < 4; ++i) bytes[checksum_at + i] = static_cast<uint8_t>(checksum >> 8 * i);
    Py_END_ALLOW_THREADS;
    if (bad == 0) return message;
    Py_DECREF(message);
    return PyLong_FromSize_t(bad);
}

PyObject* py_quantize(PyObject*, PyObject* args) {
    const char* name;
    PyObject *from, *to, *beside;
    Py_ssize_t n, block, threads;
    if (!PyArg_ParseTuple(args, "sOOOnnn", &name, &from, &to, &beside, &n, &block, &threads)) return nullptr;
    const Code* code = code_for(name, n, block, threads);
    if (code == nullptr) return nullptr;
    const Buffer values(from, false, n, sizeof(float), "values");
    const Buffer codes(to, true, code->code_bytes(n), 1, "codes");
    const Buffer scales(beside, true, (n + block - 1) / block, code->scale_bytes, "scales");
    if (PyErr_Occurred()) return nullptr;
    size_t bad;
    Py_BEGIN_ALLOW_THREADS;
    bad = over_blocks(n, block, threads, [&](const Part& part) {
        return code->encode(values.as<const float>(), codes.as<uint8_t>(), scales.as<uint8_t>(), part);
    });
    Py_END_ALLOW_THREADS;
    return PyLong_FromSize_t(bad);
}

PyObject* py_dequantize(PyObject*, PyObject* args) {
    const char* name;
    PyObject *from, *beside, *to;
    Py_ssize_t n, block, threads;
    if (!PyArg_ParseTuple(args, "sOOOnnn", &name, &from, &beside, &to, &n, &block, &threads)) return nullptr;
    const Code* code = code_for(name, n, block, threads);
    if (code == nullptr) return nullptr;
    const Buffer codes(from, false, code->code_bytes(n), 1, "codes");
    const Buffer scales(beside, false, (n + block - 1) / block, code->scale_bytes, "scales");
    const Buffer values(to, true, n, sizeof(float), "values");
    if (PyErr_Occurred()) return nullptr;
    size_t bad;
    Py_BEGIN_ALLOW_THREADS;
    bad = over_blocks(n, block, threads, [&](const Part& part) {
        return code->decode(codes.as<const uint8_t>(), scales.as<const uint8_t>(), values.as<float>(), part);
    });
    Py_END_ALLOW_THREADS;
    return PyLong_FromSize_t(bad);
}

PyObject* py_nf4_matmul(PyObject*, PyObject* args) {
    PyObject *from, *coded, *beside, *to;
    Py_ssize_t rows, in, out, block, threads;
    if (!PyArg_ParseTuple(args, "OOOOnnnnn", &from, &coded, &beside, &to, &rows, &in, &out, &block, &threads)) return nullptr;
    const Py_ssize_t step = MATMUL_STEP;
    if (rows < 1 || rows > static_cast<Py_ssize_t>(MATMUL_ROWS) || in < 1 || out < 1 || block < 1 || threads < 1 ||
        block % step != 0 || in % block != 0) {
        PyErr_Format(PyExc_ValueError, "1 to %zu rows, and inputs of whole blocks of a multiple of %zu are wanted", MATMUL_ROWS,
                     MATMUL_STEP);
        return nullptr;
    }
    const Buffer x(from, false, rows * in, sizeof(float), "x");
    const Buffer codes(coded, false, in / 2 * out, 1, "codes");
    const Buffer scales(beside, false, in / block * out, sizeof(float), "scales");
    const Buffer y(to, true, rows * out, sizeof(float), "out");
    if (PyErr_Occurred()) return nullptr;
    const Matmul size{static_cast<size_t>(rows), static_cast<size_t>(in), static_cast<size_t>(out), static_cast<size_t>(block)};
    Py_BEGIN_ALLOW_THREADS;
    const size_t pieces = std::max<size_t>(1, std::min<size_t>(out, threads * 4));
    Pool::instance().run(threads, pieces, [&](size_t piece) {
        CHOSEN(nf4_matmul)(x.as<const float>(), codes.as<const uint8_t>(), scales.as<const float>(), y.as<float>(), size,
                           out * piece / pieces, out * (piece + 1) / pieces);
    });
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* py_absmax(PyObject*, PyObject* args) {
    PyObject *object, *largest;
    Py_ssize_t n, block;
    if (!PyArg_ParseTuple(args, "OOnn", &object, &largest, &n, &block)) return nullptr;
    if (code_for("dynamic", n, block, 1) == nullptr) return nullptr;
    const Buffer values(object, false, n, sizeof(float), "values");
    const Buffer found(largest, true, (n + block - 1) / block, sizeof(float), "largest");
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    for (Py_ssize_t at = 0; at * block < n; ++at)
        found.as<int32_t>()[at] = CHOSEN(absmax)(values.as<const float>() + at * block, std::min(block, n - at * block));
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* py_crc32(PyObject*, PyObject* args) {
    PyObject* object;
    unsigned int before;
    if (!PyArg_ParseTuple(args, "OI", &object, &before)) return nullptr;
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) != 0) return nullptr;
    uint32_t crc;
    Py_BEGIN_ALLOW_THREADS;
    crc = crc32(static_cast<const uint8_t*>(view.buf), static_cast<size_t>(view.len), before);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(crc);
}

PyObject* py_set_levels(PyObject*, PyObject* args) {
    PyObject *eight, *four;
    if (!PyArg_ParseTuple(args, "OO", &eight, &four)) return nullptr;
    const Buffer dynamic_levels(eight, false, 256, sizeof(float), "dynamic levels");
    const Buffer nf4_levels(four, false, NF4, sizeof(float), "nf4 levels");
    if (PyErr_Occurred()) return nullptr;
    set_levels(dynamic_levels.as<const float>());
    set_nf4_levels(nf4_levels.as<const float>());
    Py_RETURN_NONE;
}

PyObject* py_sets(PyObject*, PyObject*) {
    PyObject* names = PyList_New(0);
    for (int set = 0; names != nullptr && set < 3; ++set) {
        PyObject* name = supports(set) ? PyUnicode_FromString(SETS[set]) : nullptr;
        if (name != nullptr && PyList_Append(names, name) != 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

PyObject* py_used(PyObject*, PyObject*) { return PyUnicode_FromString(SETS[chosen]); }

PyObject* py_use(PyObject*, PyObject* args) {
    const char* wanted;
    if (!PyArg_ParseTuple(args, "s", &wanted)) return nullptr;
    for (int set = 0; set < 3; ++set)
        if (std::strcmp(SETS[set], wanted) == 0 && supports(set)) {
            chosen = set;
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "this machine has no instruction set %s", wanted);
}

PyMethodDef METHODS[] = {
    {"pack", py_pack, METH_VARARGS,
     "(code, header, checksum_at, values, n, block, threads) -> header + scales + codes, or how many are not finite"},
    {"quantize", py_quantize, METH_VARARGS,
     "(code, values, codes, scales, n, block, threads) -> how many values are not finite"},
    {"dequantize", py_dequantize, METH_VARARGS,
     "(code, codes, scales, values, n, block, threads) -> how many values are not finite"},
    {"nf4_matmul", py_nf4_matmul, METH_VARARGS,
     "(x [rows, in], codes, scales, out [rows, out], rows, in, out, block, threads): x times a weight [out, in], transposed"},
    {"absmax", py_absmax, METH_VARARGS, "(values, largest, n, block): the largest magnitude of each block"},
    {"crc32", py_crc32, METH_VARARGS, "(buffer, before): the CRC-32 as zlib's, going on from that of what stands before"},
    {"set_levels", py_set_levels, METH_VARARGS,
     "(dynamic, nf4): the 256 and the 16 float32 levels, ascending; once, before they are used"},
    {"sets", py_sets, METH_NOARGS, "The instruction sets that this machine has, the best one last."},
    {"used", py_used, METH_NOARGS, "The instruction set that is chosen."},
    {"use", py_use, METH_VARARGS, "Chooses one of them for all kernels."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&MODULE); }
