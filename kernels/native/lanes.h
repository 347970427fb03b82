// The kernels, written once. native.cpp includes this file once for each instruction set, in a namespace of its own and
// compiled for that set; there is no include guard on purpose. LANES is 0 for plain C++, 2 for AVX2, 512 for AVX-512.
//
// Whatever the set, the same bytes: every floating-point operation is a single correctly rounded one, in the order that
// is written (no contraction to fused multiply-add), or its result is checked against an exact comparison.

// The largest magnitude as the bits of a float: they order as the floats do, with infinity and NaN on top.
static int32_t absmax(const float* x, size_t n) {
    int32_t most = 0;
    for (size_t i = 0; i < n; ++i) most = std::max(most, bits_of(x[i]) & MAGNITUDE);
    return most;
}

static size_t count_non_finite(const float* x, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; ++i) count += (bits_of(x[i]) & MAGNITUDE) >= INFINITE;
    return count;
}

// ---- linear int8

// Codes of a block: x times `reciprocal`, rounded to an integer, half to even.
static void linear_codes(const float* in, int8_t* out, size_t length, float reciprocal) {
    size_t i = 0;
#if LANES == 512
    const __m512 factor = _mm512_set1_ps(reciprocal);
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (; i + 64 <= length; i += 64) {
        __m512i whole[4];
        for (int part = 0; part < 4; ++part)
            whole[part] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(in + i + 16 * part), factor));
        const __m512i bytes = _mm512_packs_epi16(
            _mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3]));
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi32(in_order, bytes));
    }
#elif LANES == 2
    const __m256 factor = _mm256_set1_ps(reciprocal);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (; i + 32 <= length; i += 32) {
        __m256i whole[4];
        for (int part = 0; part < 4; ++part)
            whole[part] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(in + i + 8 * part), factor));
        const __m256i bytes = _mm256_packs_epi16(
            _mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permutevar8x32_epi32(bytes, in_order));
    }
#endif
    for (; i < length; ++i) out[i] = static_cast<int8_t>(bits_of(in[i] * reciprocal + TO_INTEGER));
}

// One block with its scale; where the reciprocal could be infinite, by a power of two first, which rounds nothing.
static void linear_block(const float* in, int8_t* out, size_t length, float scale, float reciprocal) {
    if (scale == 0.0f) {
        std::memset(out, 0, length);
    } else if (scale >= SMALL) {
        linear_codes(in, out, length, reciprocal);
    } else {
        const float raised = 1.0f / (scale * UP);
        for (size_t i = 0; i < length; ++i) out[i] = static_cast<int8_t>(bits_of(in[i] * UP * raised + TO_INTEGER));
    }
}

// Has what is read next come nearer, while this is computed.
static void fetch(const float* from, size_t count) {
    for (size_t i = 0; i < count; i += 16) __builtin_prefetch(from + i);
}

// The same for what is written next.
static void fetch_to_write(float* to, size_t count) {
    for (size_t i = 0; i < count; i += 16) __builtin_prefetch(to + AHEAD + i, 1);
}

// Codes block after block: `scale_of(largest magnitude's bits)` is a block's scale, and `one(at, length, largest, scale,
// 1 / scale)` codes it. Some blocks at a time, as many as stay in the first cache: their divisions are done side by side.
// How many values are not finite; blocks that have such are left out.
template <typename Scale, typename One>
static size_t encode_blocks(const float* x, const Part& part, Scale scale_of, One one) {
    constexpr size_t GROUP = 16, GROUP_ELEMENTS = 2048;
    const size_t group = std::max<size_t>(1, std::min(GROUP, GROUP_ELEMENTS / part.block));
    size_t bad = 0;
    for (size_t first = part.first; first < part.last; first += group) {
        const size_t count = std::min(group, part.last - first);
        int32_t most[GROUP] = {};
        float scale[GROUP], reciprocal[GROUP];
        for (size_t k = 0; k < count; ++k) most[k] = absmax(x + (first + k) * part.block, part.length(first + k));
        for (size_t k = 0; k < GROUP; ++k) {
            scale[k] = scale_of(most[k]);
            reciprocal[k] = 1.0f / scale[k];
        }
        for (size_t k = 0; k < count; ++k) {
            const size_t at = first + k, length = part.length(at);
            if (most[k] >= INFINITE) {
                bad += count_non_finite(x + at * part.block, length);
                continue;
            }
            fetch(x + (at + group) * part.block, at + group < part.last ? part.length(at + group) : 0);
            one(at, length, scale[k], reciprocal[k]);
        }
    }
    return bad;
}

static size_t linear_encode(const float* x, int8_t* codes, uint16_t* scales, const Part& part) {
    const auto rounded_up = [](int32_t most) {  // to bfloat16, so that nothing clips
        return float_of((bits_of(float_of(most) / 127.0f) + 0xFFFF) & ~0xFFFF);
    };
    return encode_blocks(x, part, rounded_up, [&](size_t at, size_t length, float scale, float reciprocal) {
        scales[at] = static_cast<uint16_t>(static_cast<uint32_t>(bits_of(scale)) >> 16);
        linear_block(x + at * part.block, codes + at * part.block, length, scale, reciprocal);
    });
}

static void linear_values(const int8_t* in, float* to, size_t length, float scale) {
    size_t i = 0;
#if LANES == 512
    const __m512 factor = _mm512_set1_ps(scale);
    for (; i + 16 <= length; i += 16) {
        const __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
        _mm512_storeu_ps(to + i, _mm512_mul_ps(_mm512_cvtepi32_ps(codes), factor));
    }
#endif
    for (; i < length; ++i) to[i] = static_cast<float>(in[i]) * scale;
}

static size_t linear_decode(const int8_t* codes, const uint16_t* scales, float* out, const Part& part) {
    size_t bad = 0;
    for (size_t at = part.first; at < part.last; ++at) {
        float* to = out + at * part.block;
        const size_t length = part.length(at);
        const float scale = from_bfloat16(scales[at]);
        fetch_to_write(to, length);
        linear_values(codes + at * part.block, to, length, scale);
        if ((bits_of(scale * 128.0f) & MAGNITUDE) >= INFINITE) bad += count_non_finite(to, length);
    }
    return bad;
}

// ---- the dynamic code

// The code of x where the largest magnitude is `most`, from a guess at the index of its level: exactly the nearest level
// to the quotient, since a midpoint times a float has no more digits than a double.
static uint8_t exact_code(float x, double most, int32_t index) {
    const double magnitude = std::fabs(static_cast<double>(x));
    while (index < TOP && magnitude > dynamic.middles[index] * most) ++index;
    while (index > 0 && !(magnitude > dynamic.middles[index - 1] * most)) --index;
    return static_cast<uint8_t>(bits_of(x) < 0 ? ZERO - std::min(index, TOP - 1) : ZERO + index);
}

// An index that is right unless `unsure`: the quotient then lies so near a midpoint, or the edge of its bucket, that the
// roundings of `y` could have moved it across.
static inline int32_t guess(float y, bool& unsure) {
    const int32_t bits = bits_of(y), key = std::max(0, (bits >> KEY_SHIFT) - FIRST_KEY);
    const int32_t entry = dynamic.buckets[key], low = bits & LOW_BITS, middle = entry & LOW_BITS;
    unsure = std::abs(low - middle) <= NEAR || ((low + NEAR) & LOW_BITS) <= 2 * NEAR;
    return (entry >> KEY_SHIFT) + (low > middle);
}

static void dynamic_codes(const float* in, uint8_t* out, size_t length, float most, float reciprocal) {
    size_t i = 0;
#if LANES == 512
    // The index is linear in the quotient within a decade; the octave says which decade, but for one threshold inside. The
    // lines are laid such that they pass a half exactly where the index changes (`set_decades`), also from decade to decade:
    // a quotient whose index roundings could have changed lies near a half.
    const __m512 factor = _mm512_set1_ps(reciprocal), least = _mm512_set1_ps(LEAST), sign = _mm512_set1_ps(-0.0f);
    const __m512 near_half = _mm512_set1_ps(0.5f - EDGE);
    const __m512 next_a = _mm512_loadu_ps(dynamic.next), next_b = _mm512_loadu_ps(dynamic.next + 16);
    const __m512 slope_a = _mm512_loadu_ps(dynamic.slope), slope_b = _mm512_loadu_ps(dynamic.slope + 16);
    const __m512 offset_a = _mm512_loadu_ps(dynamic.offset), offset_b = _mm512_loadu_ps(dynamic.offset + 16);
    const __m512 last_a = _mm512_loadu_ps(dynamic.last), last_b = _mm512_loadu_ps(dynamic.last + 16);
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i one = _mm512_set1_epi32(1);
    // The indices are made negative where x is not, which bytes hold down to -128, as the top's is; 127 less that is the code.
    const __m512i turned = _mm512_set1_epi8(0x7F);
    constexpr int MAX_MAGNITUDE = 0b1011;
    for (; i + 64 <= length; i += 64) {
        __m512i whole[4];
        __m512 rest[4];
        for (int quarter = 0; quarter < 4; ++quarter) {
            const __m512 quotient = _mm512_mul_ps(_mm512_loadu_ps(in + i + 16 * quarter), factor);
            const __m512 y = _mm512_range_ps(quotient, least, MAX_MAGNITUDE);
            __m512i octave = _mm512_srli_epi32(_mm512_castps_si512(y), 23);  // of which the tables take the low five bits
            const __mmask16 above = _mm512_cmp_ps_mask(y, _mm512_permutex2var_ps(next_a, octave, next_b), _CMP_GT_OQ);
            octave = _mm512_mask_add_epi32(octave, above, octave, one);
            const __m512 place = _mm512_fmadd_ps(y, _mm512_permutex2var_ps(slope_a, octave, slope_b),
                                                 _mm512_permutex2var_ps(offset_a, octave, offset_b));
            rest[quarter] = _mm512_reduce_ps(place, _MM_FROUND_TO_NEAREST_INT);
            const __m512 index = _mm512_min_ps(place, _mm512_permutex2var_ps(last_a, octave, last_b));
            whole[quarter] = _mm512_cvtps_epi32(_mm512_or_ps(index, _mm512_andnot_ps(quotient, sign)));
        }
        const __m512i bytes = _mm512_packs_epi16(
            _mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3]));
        _mm512_storeu_si512(out + i, _mm512_xor_si512(_mm512_permutexvar_epi32(in_order, bytes), turned));
        const __m512 furthest = _mm512_range_ps(_mm512_range_ps(rest[0], rest[1], MAX_MAGNITUDE),
                                                _mm512_range_ps(rest[2], rest[3], MAX_MAGNITUDE), MAX_MAGNITUDE);
        if (_mm512_cmp_ps_mask(furthest, near_half, _CMP_GT_OQ) == 0) continue;
        for (int quarter = 0; quarter < 4; ++quarter)
            for (uint32_t left = _mm512_cmp_ps_mask(_mm512_abs_ps(rest[quarter]), near_half, _CMP_GT_OQ); left; left &= left - 1) {
                const size_t lane = i + 16 * quarter + __builtin_ctz(left);
                out[lane] = exact_code(in[lane], most, std::abs(out[lane] - ZERO));
            }
    }
#elif LANES == 2
    const __m256 factor = _mm256_set1_ps(reciprocal), sign = _mm256_set1_ps(-0.0f);
    const __m256i low_bits = _mm256_set1_epi32(LOW_BITS), near = _mm256_set1_epi32(NEAR + 1);
    const __m256i zero = _mm256_set1_epi32(ZERO);
    for (; i + 8 <= length; i += 8) {
        const __m256 x = _mm256_loadu_ps(in + i);
        const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(_mm256_andnot_ps(sign, x), factor));
        const __m256i key = _mm256_max_epi32(
            _mm256_sub_epi32(_mm256_srli_epi32(bits, KEY_SHIFT), _mm256_set1_epi32(FIRST_KEY)), _mm256_setzero_si256());
        const __m256i entry = _mm256_i32gather_epi32(dynamic.buckets, key, 4);
        const __m256i low = _mm256_and_si256(bits, low_bits), middle = _mm256_and_si256(entry, low_bits);
        const __m256i index = _mm256_sub_epi32(_mm256_srli_epi32(entry, KEY_SHIFT), _mm256_cmpgt_epi32(low, middle));
        const __m256i beside = _mm256_cmpgt_epi32(near, _mm256_abs_epi32(_mm256_sub_epi32(low, middle)));
        const __m256i edge = _mm256_cmpgt_epi32(
            _mm256_set1_epi32(2 * NEAR + 1), _mm256_and_si256(_mm256_add_epi32(low, _mm256_set1_epi32(NEAR)), low_bits));
        const int unsure = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_or_si256(beside, edge)));
        const __m256i below = _mm256_sub_epi32(zero, _mm256_min_epi32(index, _mm256_set1_epi32(TOP - 1)));
        const __m256 chosen = _mm256_blendv_ps(
            _mm256_castsi256_ps(_mm256_add_epi32(zero, index)), _mm256_castsi256_ps(below), x);
        const __m256i words = _mm256_packus_epi32(_mm256_castps_si256(chosen), _mm256_setzero_si256());
        const __m256i bytes = _mm256_packus_epi16(words, _mm256_setzero_si256());
        const int32_t first = _mm256_extract_epi32(bytes, 0), second = _mm256_extract_epi32(bytes, 4);
        std::memcpy(out + i, &first, 4);
        std::memcpy(out + i + 4, &second, 4);
        for (uint32_t left = static_cast<uint32_t>(unsure); left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            out[i + lane] = exact_code(in[i + lane], most, std::abs(out[i + lane] - ZERO));
        }
    }
#endif
    for (; i < length; ++i) {  // without branches on what the values are, which nobody could predict
        bool unsure;
        const int32_t negative = bits_of(in[i]) >> 31;
        int32_t index = guess(std::fabs(in[i]) * reciprocal, unsure);
        index -= (index >> 7) & negative;
        out[i] = static_cast<uint8_t>(ZERO + ((index ^ negative) - negative));
        if (unsure) out[i] = exact_code(in[i], most, index);
    }
}

static size_t dynamic_encode(const float* x, uint8_t* codes, float* scales, const Part& part) {
    return encode_blocks(x, part, float_of, [&](size_t at, size_t length, float most, float reciprocal) {
        const float* in = x + at * part.block;
        uint8_t* out = codes + at * part.block;
        scales[at] = most;
        if (most == 0.0f) {
            std::memset(out, ZERO, length);
        } else if (most < SMALL || most > 1.0f / SMALL) {  // where a reciprocal or a quotient could lose digits
            for (size_t i = 0; i < length; ++i) out[i] = exact_code(in[i], most, 0);
        } else {
            dynamic_codes(in, out, length, most, reciprocal);
        }
    });
}

__attribute__((noinline)) static void dynamic_values(const uint8_t* in, float* to, size_t length, float scale) {
#if LANES == 2
    plain::dynamic_values(in, to, length, scale);  // compiled for AVX2 it would gather, which is slower than plain loads
#else
    size_t i = 0;
#if LANES == 512
    // The magnitudes 0 to 127 lie in eight registers.
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 magnitudes[8];
    for (int part = 0; part < 8; ++part) magnitudes[part] = _mm512_loadu_ps(dynamic.levels + ZERO + 16 * part);
    for (; i + 16 <= length; i += 16) {
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
        const __m512i difference = _mm512_sub_epi32(codes, _mm512_set1_epi32(ZERO)), index = _mm512_abs_epi32(difference);
        const __mmask16 second = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
        const __mmask16 third = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
        __m512 quarters[4];
        for (int part = 0; part < 4; ++part)
            quarters[part] = _mm512_permutex2var_ps(magnitudes[2 * part], index, magnitudes[2 * part + 1]);
        const __m512 lower = _mm512_mask_mov_ps(quarters[0], second, quarters[1]);
        const __m512 upper = _mm512_mask_mov_ps(quarters[2], second, quarters[3]);
        __m512 level = _mm512_mask_mov_ps(lower, third, upper);
        level = _mm512_mask_mov_ps(level, _mm512_test_epi32_mask(index, _mm512_set1_epi32(TOP)), _mm512_set1_ps(1.0f));
        const __m512i sign = _mm512_and_si512(difference, _mm512_set1_epi32(~MAGNITUDE));
        level = _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(level), sign));
        _mm512_storeu_ps(to + i, _mm512_mul_ps(level, factor));
    }
#endif
    for (; i < length; ++i) to[i] = dynamic.levels[in[i]] * scale;
#endif
}

static size_t dynamic_decode(const uint8_t* codes, const float* scales, float* out, const Part& part) {
    size_t bad = 0;
    for (size_t at = part.first; at < part.last; ++at) {
        const uint8_t* in = codes + at * part.block;
        float* to = out + at * part.block;
        const size_t length = part.length(at);
        const float scale = scales[at];
        fetch_to_write(to, length);
        dynamic_values(in, to, length, scale);
        if ((bits_of(scale) & MAGNITUDE) >= INFINITE) bad += length;
    }
    return bad;
}

// ---- nf4: two elements a byte, the first in the high half

static void nf4_codes(const float* in, uint8_t* out, size_t length, float up, float reciprocal) {
    constexpr size_t AT_ONCE = 64;
    int32_t codes[AT_ONCE];
    for (size_t first = 0; first < length; first += AT_ONCE) {
        const size_t count = std::min(AT_ONCE, length - first);
        const float* from = in + first;
        for (size_t i = 0; i < count; ++i) {
            const float quotient = from[i] * up * reciprocal;
            int32_t code = 0;
            for (int middle = 0; middle + 1 < NF4; ++middle) code += quotient > nf4.middles[middle];
            codes[i] = code;
        }
        if (count % 2 != 0) codes[count] = 0;
        for (size_t i = 0; i < count; i += 2) out[(first + i) / 2] = static_cast<uint8_t>(codes[i] << 4 | codes[i + 1]);
    }
}

static size_t nf4_encode(const float* x, uint8_t* codes, float* scales, const Part& part) {
    size_t bad = 0;
    for (size_t at = part.first; at < part.last; ++at) {
        const float* in = x + at * part.block;
        const size_t length = part.length(at);
        const int32_t bits = absmax(in, length);
        if (bits >= INFINITE) {
            bad += count_non_finite(in, length);
            continue;
        }
        scales[at] = float_of(bits);
        const float up = scales[at] < SMALL ? UP : 1.0f;
        const float reciprocal = bits == 0 ? 1.0f : 1.0f / (scales[at] * up);
        nf4_codes(in, codes + at * part.block / 2, length, up, reciprocal);
    }
    return bad;
}

// As many floats as a register of this set holds. Sixteen lanes are PARTS of them.
typedef float Register __attribute__((vector_size(LANES == 512 ? 64 : LANES == 2 ? 32 : 16)));
constexpr size_t SIXTEEN = 16, WIDTH = sizeof(Register) / sizeof(float), PARTS = SIXTEEN / WIDTH;

static inline Register loaded(const float* from) {
    Register values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

// The sixteen levels times a scale, and what sixteen codes stand for. A code is brought to the low bits of its lane, where
// permutations look at nothing above the bits that they need.
struct Nf4Table {
    Register scaled[PARTS];

    void set(float scale) {
        for (size_t part = 0; part < PARTS; ++part) scaled[part] = loaded(nf4.levels + part * WIDTH) * scale;
    }

    inline void values(const uint8_t* in, Register* to) const {
#if LANES == 512
        int32_t first, second;
        std::memcpy(&first, in, 4);
        std::memcpy(&second, in + 4, 4);
        const __m512i shifts = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
        const __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xFF00, second);
        to[0] = _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), scaled[0]);
#elif LANES == 2
        const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
        for (size_t part = 0; part < PARTS; ++part) {
            int32_t word;
            std::memcpy(&word, in + part * WIDTH / 2, 4);
            const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
            const __m256 is_upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
            to[part] = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(scaled[0], codes), _mm256_permutevar8x32_ps(scaled[1], codes), is_upper);
        }
#else
        float levels[NF4], found[SIXTEEN];
        std::memcpy(levels, scaled, sizeof levels);
        for (size_t i = 0; i < SIXTEEN; i += 2) {
            found[i] = levels[in[i / 2] >> 4];
            found[i + 1] = levels[in[i / 2] & 15];
        }
        std::memcpy(to, found, sizeof found);
#endif
    }
};

static void nf4_values(const uint8_t* in, float* to, size_t length, float scale) {
    Nf4Table table;
    table.set(scale);
    size_t i = 0;
    for (; i + SIXTEEN <= length; i += SIXTEEN) {
        Register values[PARTS];
        table.values(in + i / 2, values);
        std::memcpy(to + i, values, sizeof values);
    }
    for (; i < length; ++i) to[i] = nf4.levels[in[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15] * scale;
}

static size_t nf4_decode(const uint8_t* codes, const float* scales, float* out, const Part& part) {
    size_t bad = 0;
    for (size_t at = part.first; at < part.last; ++at) {
        const size_t length = part.length(at);
        fetch_to_write(out + at * part.block, length);
        nf4_values(codes + at * part.block / 2, out + at * part.block, length, scales[at]);
        if ((bits_of(scales[at]) & MAGNITUDE) >= INFINITE) bad += length;
    }
    return bad;
}

// out[r, o] = sum over i of x[r, i] times weight[o, i], for OUTPUTS outputs from o on: every sixteen weights of an output are
// decoded once for all rows. In sixteen sums, which are added at the end; of several outputs, since an addition takes some
// cycles and the next one to the same sum waits for it.
template <size_t ROWS, size_t OUTPUTS>
static void nf4_outputs(const float* x, const uint8_t* codes, const float* scales, float* out, const Matmul& size, size_t o) {
    const size_t blocks = size.in / size.block;
    Register sums[OUTPUTS][ROWS][PARTS] = {};
    for (size_t block = 0; block < blocks; ++block) {
        Nf4Table tables[OUTPUTS];
        for (size_t k = 0; k < OUTPUTS; ++k) tables[k].set(scales[(o + k) * blocks + block]);
        for (size_t i = block * size.block; i < (block + 1) * size.block; i += SIXTEEN) {
            Register inputs[ROWS][PARTS];
            for (size_t row = 0; row < ROWS; ++row)
                for (size_t part = 0; part < PARTS; ++part) inputs[row][part] = loaded(x + row * size.in + i + part * WIDTH);
            for (size_t k = 0; k < OUTPUTS; ++k) {
                Register weights[PARTS];
                tables[k].values(codes + ((o + k) * size.in + i) / 2, weights);
                for (size_t row = 0; row < ROWS; ++row)
                    for (size_t part = 0; part < PARTS; ++part) sums[k][row][part] += weights[part] * inputs[row][part];
            }
        }
    }
    for (size_t k = 0; k < OUTPUTS; ++k)
        for (size_t row = 0; row < ROWS; ++row) {
            float total = 0.0f, lanes[SIXTEEN];
            std::memcpy(lanes, sums[k][row], sizeof lanes);
            for (float lane : lanes) total += lane;
            out[row * size.out + o + k] = total;
        }
}

template <size_t ROWS>
static void nf4_rows(const float* x, const uint8_t* codes, const float* scales, float* out, const Matmul& size, size_t first,
                     size_t last) {
    // Their sums stay in registers.
    constexpr size_t OUTPUTS = std::max<size_t>(1, std::min<size_t>(4, (LANES == 512 ? 16 : 4) / ROWS / PARTS));
    size_t o = first;
    for (; o + OUTPUTS <= last; o += OUTPUTS) nf4_outputs<ROWS, OUTPUTS>(x, codes, scales, out, size, o);
    for (; o < last; ++o) nf4_outputs<ROWS, 1>(x, codes, scales, out, size, o);
}

static void nf4_matmul(const float* x, const uint8_t* codes, const float* scales, float* out, const Matmul& size, size_t first,
                       size_t last) {
    static constexpr auto BY_ROWS = {nf4_rows<1>, nf4_rows<2>, nf4_rows<3>, nf4_rows<4>,
                                     nf4_rows<5>, nf4_rows<6>, nf4_rows<7>, nf4_rows<8>};
    static_assert(BY_ROWS.size() == MATMUL_ROWS);
    BY_ROWS.begin()[size.rows - 1](x, codes, scales, out, size, first, last);
}
