// The CRC-32 of zlib, by carry-less multiplication: 64 bytes are folded onto the next 64 at a time (Gopal et al., "Fast
// CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009), and what is left goes through a table.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

inline uint32_t crc32_table(uint32_t crc, const uint8_t* data, size_t length) {
    static const std::array<uint32_t, 256> table = [] {
        std::array<uint32_t, 256> made{};
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
            made[i] = value;
        }
        return made;
    }();
    for (size_t i = 0; i < length; ++i) crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xFF];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("pclmul,sse4.1"))) inline uint32_t crc32_folded(uint32_t crc, const uint8_t* data, size_t length) {
    // x^(512+32), x^(512-32) and x^(128+32), x^(128-32) modulo the polynomial, bits reflected.
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const auto load = [&](size_t at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + at)); };
    const auto fold = [](__m128i value, __m128i by, __m128i next) __attribute__((target("pclmul,sse4.1"))) {
        const __m128i low = _mm_clmulepi64_si128(value, by, 0x00), high = _mm_clmulepi64_si128(value, by, 0x11);
        return _mm_xor_si128(_mm_xor_si128(low, high), next);
    };
    __m128i lanes[4] = {_mm_xor_si128(load(0), _mm_cvtsi32_si128(static_cast<int>(crc))), load(16), load(32), load(48)};
    size_t at = 64;
    for (; at + 64 <= length; at += 64)
        for (int lane = 0; lane < 4; ++lane) lanes[lane] = fold(lanes[lane], by_64, load(at + 16 * lane));
    __m128i one = lanes[0];
    for (int lane = 1; lane < 4; ++lane) one = fold(one, by_16, lanes[lane]);
    for (; at + 16 <= length; at += 16) one = fold(one, by_16, load(at));
    uint8_t left[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(left), one);
    return crc32_table(crc32_table(0, left, 16), data + at, length - at);
}
#endif

// `before`: the CRC-32 of what stands before, which this goes on from.
inline uint32_t crc32(const uint8_t* data, size_t length, uint32_t before = 0) {
    const uint32_t start = ~before;
#if defined(__x86_64__)
    static const bool can_fold = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    if (can_fold && length >= 64) return ~crc32_folded(start, data, length);
#endif
    return ~crc32_table(start, data, length);
}
