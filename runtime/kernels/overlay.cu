// The anomaly map laid over the frame, as adedge.runtime.overlay.overlay paints it with outline=False.
//
// The map is resized bilinearly to the frame (half-pixel centres) and put on the fixed scale 0 ... 255 with the
// threshold at 128. Colour begins to show at level 64, full opacity 0.6 is reached at the threshold. Levels are
// truncated, so where a resized value falls on a boundary a pixel may take the neighbouring colour; without a resize
// every pixel is within one grey level. NaN has the colour of 255.
//
//   overlay
//     const unsigned char *frame    (height, width, channels) BGR or grey, rows pitch bytes apart
//     int pitch, height, width, channels (1 or 3)
//     const float *map              (map_height, map_width)
//     int map_height, map_width
//     const unsigned char *colours  (256, 3): BGR of each level
//     float threshold, scale        scale = 127 / |threshold|, 127 where the threshold is 0
//     unsigned char *painted        (height, width, 3) BGR, rows painted_pitch bytes apart; may be a BGR frame
//     int painted_pitch
//   grid (ceil(width / 32), ceil(height / 8), 1), block (32, 8, 1), shared 0
#include "common.cuh"

namespace {

constexpr float OPACITY = 0.6f;

// No neighbour of weight 0 counts: it may be infinite.
__device__ __forceinline__ float mixed(float a, float b, float weight) {
  return weight > 0 ? a * (1 - weight) + b * weight : a;
}

__device__ __forceinline__ float resized(const float *map, int map_height, int map_width, float y, float x) {
  y = fminf(fmaxf(y, 0.0f), map_height - 1.0f);
  x = fminf(fmaxf(x, 0.0f), map_width - 1.0f);
  const int top = static_cast<int>(y), left = static_cast<int>(x);
  const float down = y - top, across = x - left;
  const float *upper = map + static_cast<long long>(top) * map_width + left;
  const float *lower = down > 0 ? upper + map_width : upper;
  const int right = across > 0 ? 1 : 0;
  return mixed(mixed(upper[0], upper[right], across), mixed(lower[0], lower[right], across), down);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    overlay(const unsigned char *frame, int pitch, int height, int width, int channels, const float *map,
            int map_height, int map_width, const unsigned char *colours, float threshold, float scale,
            unsigned char *painted, int painted_pitch) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  const float value = resized(map, map_height, map_width, (y + 0.5f) * (static_cast<float>(map_height) / height) - 0.5f,
                              (x + 0.5f) * (static_cast<float>(map_width) / width) - 0.5f);
  const float scaled = (value - threshold) * scale + 128;
  const int level = scaled != scaled ? 255 : static_cast<int>(fminf(fmaxf(scaled, 0.0f), 255.0f));
  const float opacity = fminf(fmaxf((level - 64) / 64.0f, 0.0f), 1.0f) * OPACITY;
  const unsigned char *from = frame + static_cast<long long>(y) * pitch + x * channels;
  unsigned char *to = painted + static_cast<long long>(y) * painted_pitch + 3 * x;
  unsigned char blended[3];
#pragma unroll
  for (int i = 0; i < 3; i++)
    blended[i] = static_cast<unsigned char>(from[channels == 3 ? i : 0] * (1 - opacity) +
                                            colours[3 * level + i] * opacity + 0.5f);
#pragma unroll
  for (int i = 0; i < 3; i++) to[i] = blended[i];
}
