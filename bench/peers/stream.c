/* The limit of store.sample_pack: what is read once and written once, past the caches, in one loop over memory. */

#include <emmintrin.h>
#include <stddef.h>

/* Copies `copied` bytes and sets `filled` more behind them; both are multiples of 64, `to` is aligned to 64. */
void stream(char *to, const char *from, size_t copied, size_t filled)
{
    for (size_t at = 0; at < copied; at += 64)
        for (size_t part = at; part < at + 64; part += 16)
            _mm_stream_si128((__m128i *)(to + part), _mm_loadu_si128((const __m128i *)(from + part)));
    __m128i one = _mm_set1_epi32(1);
    for (size_t at = copied; at < copied + filled; at += 64)
        for (size_t part = at; part < at + 64; part += 16)
            _mm_stream_si128((__m128i *)(to + part), one);
    _mm_sfence();
}
