// Half precision on the host: storage and conversion, which is all that the kernels use of it.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half half) {
  uint32_t sign = uint32_t{half.bits} >> 15 << 31, exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
  if (exponent == 0) {
    float magnitude = static_cast<float>(fraction) / 16777216.0f;
    return sign ? -magnitude : magnitude;
  }
  uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Rounded to the nearest, halves to even.
inline __half __float2half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  uint16_t sign = static_cast<uint16_t>(bits >> 31 << 15);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7fff)};
  if (bits >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // from 65520 on: infinity
  if (bits < 0x38800000) {                                                // subnormal: in units of 2^-24
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    float units = magnitude * 16777216.0f;
    uint32_t whole = static_cast<uint32_t>(units);
    float rest = units - static_cast<float>(whole);
    if (rest > 0.5f || (rest == 0.5f && whole % 2)) whole++;
    return {static_cast<uint16_t>(sign | whole)};
  }
  bits += 0xfff + (bits >> 13 & 1);
  return {static_cast<uint16_t>(sign | (bits - 0x38000000) >> 13)};
}
