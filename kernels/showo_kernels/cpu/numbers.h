// Numbers in the types that the CPU kernels read and write, written so that loops over them become vector code.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace showo {

// bf16 as its bits: conversions below then become vector code.
using Bits = uint16_t;

inline float widen(float x) { return x; }
inline float widen(Bits x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

template <class T>
inline T narrow(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {  // to the nearest, ties to even
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<Bits>(x != x ? 0x7fc0 : rounded);
  }
}

// 2^n times a polynomial of the rest, for x <= 0. Relative error 3e-7 near 0, 7e-7 at -10, 4e-6 at -87: that of rounding
// x log2(e), while the result shrinks much faster.
inline float exponential(float x) {
  const float y = std::max(x, -87.0f) * 1.44269504f;
  const float n = std::floor(y + 0.5f), f = y - n;
  float p = 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return std::bit_cast<float>(std::bit_cast<int32_t>(p) + (static_cast<int32_t>(n) << 23));
}

}  // namespace showo
