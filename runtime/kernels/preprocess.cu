// From frames of a camera to the network's input: bilinear resize, colour order, scale, mean and std in one pass.
//
// Equals adedge.data.pictures.conform followed by pixel * scale + bias. The resize is OpenCV's INTER_LINEAR for 8 bits, in
// its fixed-point arithmetic (weights of 11 bits, rounded to whole grey levels); grey is its Rec. 601 luma, NV12 its
// limited range BT.601, both in its fixed point. So the uint8 picture is OpenCV's, bit for bit where OpenCV computes as
// its portable code does, else within one grey level; the floats are within 1e-6 of the value tables of
// adedge.runtime.preprocess.
//
// A value is pixel * scale_i + bias_i with scale_i = scale / std_i and bias_i = -mean_i / std_i of the i-th channel in
// the network's order. Frames are BGR or grey, the network takes channels = 1 or 3; grey frames are repeated. reversed
// = 1 where the network takes RGB.
//
//   preprocess_float, preprocess_half     resize whole frames
//     const unsigned char *frames   (n, source_height, source_width, source_channels), rows pitch bytes apart
//     long long stride              bytes from one frame to the next
//     int pitch, source_height, source_width, source_channels (1 or 3)
//     T *target                     (n, channels, height, width); the address of the batch's slot to begin with
//     int height, width, channels, reversed
//     float scale0, scale1, scale2, bias0, bias1, bias2
//   grid (ceil(width / 32), ceil(height / 8), n), block (32, 8, 1), shared 0
//
//   preprocess_nv12_float, preprocess_nv12_half     the same from NV12: luma, then U and V interleaved at half size
//     const unsigned char *luma     (source_height, source_width), rows pitch bytes apart
//     const unsigned char *chroma   (source_height / 2, source_width), rows pitch bytes apart
//     int pitch, source_height, source_width (both even)
//     T *target                     (channels, height, width)
//     int height, width, channels, reversed
//     float scale0, scale1, scale2, bias0, bias1, bias2
//   grid (ceil(width / 32), ceil(height / 8), 1), block (32, 8, 1), shared 0
//
//   preprocess_tiles_float, preprocess_tiles_half     cut tiles of one frame, not resized
//     const unsigned char *frame    (source_height, source_width, source_channels), rows pitch bytes apart
//     int pitch, source_channels
//     const int *origins            (n, 2): row and column of each tile's upper left pixel; tiles lie inside the frame
//     T *target                     (n, channels, tile, tile)
//     int tile, channels, reversed
//     float scale0, scale1, scale2, bias0, bias1, bias2
//   grid (ceil(tile / 32), ceil(tile / 8), n), block (32, 8, 1), shared 0
#include "common.cuh"

namespace {

constexpr int WIDE = 32;
constexpr int HIGH = 8;

struct Values {
  float scale[3], bias[3];
};

struct Pixel {
  int channel[3];  // blue, green, red; of a grey picture all the same
};

// Where a target pixel is read along one side, and the weight of the second of two neighbours in 2048ths.
struct Position {
  int first, second, weight_first, weight_second;
};

// OpenCV takes the position as float of a double product, and beyond the border clamps weights across but indices down.
__device__ __forceinline__ Position position(int target, int target_length, int source_length, bool across) {
  const double scale = 1.0 / (static_cast<double>(target_length) / source_length);
  const float place = static_cast<float>(__dadd_rn(__dmul_rn(target + 0.5, scale), -0.5));
  int first = static_cast<int>(floorf(place));
  float rest = place - first;
  if (across && first < 0) first = 0, rest = 0;
  if (across && first >= source_length - 1) first = source_length - 1, rest = 0;
  const int last = source_length - 1, second = first + 1;
  return {first < 0      ? 0
          : first > last ? last
                         : first,
          second > last ? last : second, static_cast<int>(rintf((1 - rest) * 2048)),
          static_cast<int>(rintf(rest * 2048))};
}

// The positions of a block's columns and rows, found once.
struct Positions {
  Position column[WIDE], row[HIGH];

  __device__ void find(int height, int width, int source_height, int source_width) {
    const int thread = threadIdx.y * WIDE + threadIdx.x;
    if (thread < WIDE) column[thread] = position(blockIdx.x * WIDE + thread, width, source_width, true);
    if (thread >= WIDE && thread < WIDE + HIGH)
      row[thread - WIDE] = position(blockIdx.y * HIGH + thread - WIDE, height, source_height, false);
    __syncthreads();
  }
};

__device__ __forceinline__ int between(int upper_left, int upper_right, int lower_left, int lower_right, Position x,
                                       Position y) {
  const int upper = upper_left * x.weight_first + upper_right * x.weight_second;
  const int lower = lower_left * x.weight_first + lower_right * x.weight_second;
  const int sum = (y.weight_first * (upper >> 4) >> 16) + (y.weight_second * (lower >> 4) >> 16);
  const int rounded = (sum + 2) >> 2;
  return rounded < 0 ? 0 : rounded > 255 ? 255 : rounded;
}

__device__ __forceinline__ Pixel between(Pixel upper_left, Pixel upper_right, Pixel lower_left, Pixel lower_right,
                                         Position x, Position y) {
  Pixel pixel;
#pragma unroll
  for (int i = 0; i < 3; i++)
    pixel.channel[i] =
        between(upper_left.channel[i], upper_right.channel[i], lower_left.channel[i], lower_right.channel[i], x, y);
  return pixel;
}

// A pixel of an interleaved BGR or grey frame.
__device__ __forceinline__ Pixel read(const unsigned char *row, int x, int channels) {
  if (channels == 1) return {{row[x], row[x], row[x]}};
  return {{row[3 * x], row[3 * x + 1], row[3 * x + 2]}};
}

__device__ __forceinline__ int clamped(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

// BT.601, limited range, coefficients in 2^-20: 1.164, 1.596, -0.813, -0.391, 2.018.
__device__ __forceinline__ Pixel read_nv12(const unsigned char *luma, const unsigned char *chroma, int pitch, int y,
                                           int x) {
  const unsigned char *uv = chroma + static_cast<long long>(y / 2) * pitch + x / 2 * 2;
  const int u = uv[0] - 128, v = uv[1] - 128;
  const int above_black = luma[static_cast<long long>(y) * pitch + x] - 16;
  const int light = (above_black < 0 ? 0 : above_black) * 1220542 + (1 << 19);
  return {{clamped((light + 2116026 * u) >> 20), clamped((light - 409993 * u - 852492 * v) >> 20),
           clamped((light + 1673527 * v) >> 20)}};
}

// Write a pixel in the network's order. ``target`` is its place in the first plane.
template <class T>
__device__ __forceinline__ void write(T *target, long long plane, Pixel pixel, bool grey, int channels, int reversed,
                                      const Values &values) {
  if (channels == 1) {
    const int *bgr = pixel.channel;
    // Luma in 2^-15: 0.114, 0.587, 0.299.
    const int luma = grey ? bgr[0] : (bgr[0] * 3735 + bgr[1] * 19235 + bgr[2] * 9798 + (1 << 14)) >> 15;
    store(target, fmaf(static_cast<float>(luma), values.scale[0], values.bias[0]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 3; i++) {
    const int value = reversed ? pixel.channel[2 - i] : pixel.channel[i];
    store(target + i * plane, fmaf(static_cast<float>(value), values.scale[i], values.bias[i]));
  }
}

template <class T>
__device__ __forceinline__ void resize(const unsigned char *frames, long long stride, int pitch, int source_height,
                                       int source_width, int source_channels, T *target, int height, int width,
                                       int channels, int reversed, Values values) {
  __shared__ Positions positions;
  positions.find(height, width, source_height, source_width);
  const int x = blockIdx.x * WIDE + threadIdx.x, y = blockIdx.y * HIGH + threadIdx.y;
  if (x >= width || y >= height) return;
  const Position across = positions.column[threadIdx.x], down = positions.row[threadIdx.y];
  const unsigned char *frame = frames + blockIdx.z * stride;
  const unsigned char *upper = frame + static_cast<long long>(down.first) * pitch;
  const unsigned char *lower = frame + static_cast<long long>(down.second) * pitch;
  const Pixel pixel =
      between(read(upper, across.first, source_channels), read(upper, across.second, source_channels),
              read(lower, across.first, source_channels), read(lower, across.second, source_channels), across, down);
  const long long plane = static_cast<long long>(height) * width;
  write(target + blockIdx.z * channels * plane + static_cast<long long>(y) * width + x, plane, pixel,
        source_channels == 1, channels, reversed, values);
}

template <class T>
__device__ __forceinline__ void resize_nv12(const unsigned char *luma, const unsigned char *chroma, int pitch,
                                            int source_height, int source_width, T *target, int height, int width,
                                            int channels, int reversed, Values values) {
  __shared__ Positions positions;
  positions.find(height, width, source_height, source_width);
  const int x = blockIdx.x * WIDE + threadIdx.x, y = blockIdx.y * HIGH + threadIdx.y;
  if (x >= width || y >= height) return;
  const Position across = positions.column[threadIdx.x], down = positions.row[threadIdx.y];
  const Pixel pixel = between(read_nv12(luma, chroma, pitch, down.first, across.first),
                              read_nv12(luma, chroma, pitch, down.first, across.second),
                              read_nv12(luma, chroma, pitch, down.second, across.first),
                              read_nv12(luma, chroma, pitch, down.second, across.second), across, down);
  const long long plane = static_cast<long long>(height) * width;
  write(target + static_cast<long long>(y) * width + x, plane, pixel, false, channels, reversed, values);
}

template <class T>
__device__ __forceinline__ void cut_tiles(const unsigned char *frame, int pitch, int source_channels,
                                          const int *origins, T *target, int tile, int channels, int reversed,
                                          Values values) {
  const int x = blockIdx.x * WIDE + threadIdx.x, y = blockIdx.y * HIGH + threadIdx.y;
  if (x >= tile || y >= tile) return;
  const int *origin = origins + 2 * blockIdx.z;
  const Pixel pixel = read(frame + static_cast<long long>(origin[0] + y) * pitch, origin[1] + x, source_channels);
  const long long plane = static_cast<long long>(tile) * tile;
  write(target + blockIdx.z * channels * plane + static_cast<long long>(y) * tile + x, plane, pixel,
        source_channels == 1, channels, reversed, values);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    preprocess_float(const unsigned char *frames, long long stride, int pitch, int source_height, int source_width,
                     int source_channels, float *target, int height, int width, int channels, int reversed,
                     float scale0, float scale1, float scale2, float bias0, float bias1, float bias2) {
  resize(frames, stride, pitch, source_height, source_width, source_channels, target, height, width, channels, reversed,
         {{scale0, scale1, scale2}, {bias0, bias1, bias2}});
}

extern "C" __global__ void __launch_bounds__(256)
    preprocess_half(const unsigned char *frames, long long stride, int pitch, int source_height, int source_width,
                    int source_channels, __half *target, int height, int width, int channels, int reversed,
                    float scale0, float scale1, float scale2, float bias0, float bias1, float bias2) {
  resize(frames, stride, pitch, source_height, source_width, source_channels, target, height, width, channels, reversed,
         {{scale0, scale1, scale2}, {bias0, bias1, bias2}});
}

extern "C" __global__ void __launch_bounds__(256)
    preprocess_nv12_float(const unsigned char *luma, const unsigned char *chroma, int pitch, int source_height,
                          int source_width, float *target, int height, int width, int channels, int reversed,
                          float scale0, float scale1, float scale2, float bias0, float bias1, float bias2) {
  resize_nv12(luma, chroma, pitch, source_height, source_width, target, height, width, channels, reversed,
              {{scale0, scale1, scale2}, {bias0, bias1, bias2}});
}

extern "C" __global__ void __launch_bounds__(256)
    preprocess_nv12_half(const unsigned char *luma, const unsigned char *chroma, int pitch, int source_height,
                         int source_width, __half *target, int height, int width, int channels, int reversed,
                         float scale0, float scale1, float scale2, float bias0, float bias1, float bias2) {
  resize_nv12(luma, chroma, pitch, source_height, source_width, target, height, width, channels, reversed,
              {{scale0, scale1, scale2}, {bias0, bias1, bias2}});
}

extern "C" __global__ void __launch_bounds__(256)
    preprocess_tiles_float(const unsigned char *frame, int pitch, int source_channels, const int *origins,
                           float *target, int tile, int channels, int reversed, float scale0, float scale1,
                           float scale2, float bias0, float bias1, float bias2) {
  cut_tiles(frame, pitch, source_channels, origins, target, tile, channels, reversed,
            {{scale0, scale1, scale2}, {bias0, bias1, bias2}});
}

extern "C" __global__ void __launch_bounds__(256)
    preprocess_tiles_half(const unsigned char *frame, int pitch, int source_channels, const int *origins,
                          __half *target, int tile, int channels, int reversed, float scale0, float scale1,
                          float scale2, float bias0, float bias1, float bias2) {
  cut_tiles(frame, pitch, source_channels, origins, target, tile, channels, reversed,
            {{scale0, scale1, scale2}, {bias0, bias1, bias2}});
}
