// From camera frames to the network's input: bilinear resize, colour order, scale, mean and std in one pass.
//
// Equals adedge.data.pictures.conform followed by pixel * scale + bias. The resize reproduces OpenCV's 8-bit
// INTER_LINEAR in its fixed-point arithmetic (11-bit weights, rounded to whole grey levels); grey is OpenCV's Rec. 601
// luma and NV12 its limited-range BT.601, both in fixed point. The uint8 picture is therefore bit-identical to OpenCV's
// portable code, and within one grey level of its other code paths; the floats are within 1e-6 of the value tables of
// adedge.runtime.preprocess.
//
// A value is pixel * scale_i + bias_i with scale_i = scale / std_i and bias_i = -mean_i / std_i for channel i in the
// network's order. The network has channels = 1 or 3; a grey frame is repeated for each. reversed = 1 if it takes RGB.
//
//   preprocess            resize whole frames, BGR or grey
//     const unsigned char *frames   (n, source_height, source_width, source_channels), rows pitch bytes apart
//     long long stride              bytes from one frame to the next
//     int pitch, source_height, source_width, source_channels (1 or 3)
//     float *target                 (n, channels, height, width); the address of the first slot of the batch to fill
//     int height, width, channels, reversed
//     float scale0, scale1, scale2, bias0, bias1, bias2
//   grid (ceil(width / 32), ceil(height / 8), n), block (32, 8, 1), shared 0
//
//   preprocess_nv12       the same from NV12: the rows of luma, then rows of interleaved U and V at half size
//     const unsigned char *frames   (n, source_height * 3 / 2, source_width), rows pitch bytes apart
//     ... the other arguments of preprocess, without source_channels; source_height and source_width are even
//   grid, block, shared as preprocess
//
//   preprocess_tiles      cut tiles from one frame, BGR or grey, without resizing
//     const unsigned char *frame    (source_height, source_width, source_channels), rows pitch bytes apart
//     int pitch, source_channels
//     const int *origins            (n, 2): row and column of each tile's upper left pixel; tiles lie inside the frame
//     float *target                 (n, channels, tile, tile)
//     int tile, channels, reversed
//     float scale0, scale1, scale2, bias0, bias1, bias2
//   grid (ceil(tile / 32), ceil(tile / 8), n), block (32, 8, 1), shared 0
//
//   preprocess_tiles_nv12 the same from NV12
//     const unsigned char *frame    (source_height * 3 / 2, source_width), rows pitch bytes apart
//     int pitch, source_height
//     ... the other arguments of preprocess_tiles, from origins on
//   grid, block, shared as preprocess_tiles

namespace {

constexpr int WIDE = 32;
constexpr int HIGH = 8;

// The network's input: its colours, and the scale and bias of each channel.
struct Network {
  int channels, reversed;
  float scale[3], bias[3];
};

struct Pixel {
  int channel[3];  // blue, green, red; all equal for a grey picture
};

// Source pixels for a target pixel along one axis: two neighbours and their weights in 2048ths.
struct Position {
  int first, second, weight_first, weight_second;
};

// OpenCV rounds a double product to float; at the border it clamps weights horizontally but indices vertically.
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

// The positions of a block's columns and rows, computed once per block.
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

__device__ __forceinline__ int clamped(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

__device__ __forceinline__ int between(int upper_left, int upper_right, int lower_left, int lower_right, Position x,
                                       Position y) {
  const int upper = upper_left * x.weight_first + upper_right * x.weight_second;
  const int lower = lower_left * x.weight_first + lower_right * x.weight_second;
  const int sum = (y.weight_first * (upper >> 4) >> 16) + (y.weight_second * (lower >> 4) >> 16);
  return clamped((sum + 2) >> 2);
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

// A frame with interleaved channels: BGR or grey.
struct Interleaved {
  const unsigned char *frame;
  int pitch, channels;

  __device__ __forceinline__ bool grey() const { return channels == 1; }
  __device__ __forceinline__ Pixel at(int y, int x) const {
    const unsigned char *row = frame + static_cast<long long>(y) * pitch;
    if (grey()) return {{row[x], row[x], row[x]}};
    return {{row[3 * x], row[3 * x + 1], row[3 * x + 2]}};
  }
};

// A frame with luma at full resolution, followed by chroma at half.
struct Nv12 {
  const unsigned char *frame;
  int pitch, height;

  __device__ __forceinline__ bool grey() const { return false; }
  // BT.601, limited range, coefficients in 2^-20: 1.164, 1.596, -0.813, -0.391, 2.018.
  __device__ __forceinline__ Pixel at(int y, int x) const {
    const unsigned char *uv = frame + static_cast<long long>(height + y / 2) * pitch + x / 2 * 2;
    const int u = uv[0] - 128, v = uv[1] - 128;
    const int above_black = frame[static_cast<long long>(y) * pitch + x] - 16;
    const int light = (above_black < 0 ? 0 : above_black) * 1220542 + (1 << 19);
    return {{clamped((light + 2116026 * u) >> 20), clamped((light - 409993 * u - 852492 * v) >> 20),
             clamped((light + 1673527 * v) >> 20)}};
  }
};

// Write a pixel in the network's order. ``target`` is its address in the first plane.
__device__ __forceinline__ void write(float *target, long long plane, Pixel pixel, bool grey, const Network &network) {
  if (network.channels == 1) {
    const int *bgr = pixel.channel;
    // Luma in 2^-15: 0.114, 0.587, 0.299.
    const int luma = grey ? bgr[0] : (bgr[0] * 3735 + bgr[1] * 19235 + bgr[2] * 9798 + (1 << 14)) >> 15;
    *target = fmaf(static_cast<float>(luma), network.scale[0], network.bias[0]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 3; i++) {
    const int value = network.reversed ? pixel.channel[2 - i] : pixel.channel[i];
    target[i * plane] = fmaf(static_cast<float>(value), network.scale[i], network.bias[i]);
  }
}

template <class Frame>
__device__ __forceinline__ void resize(Frame frame, int source_height, int source_width, float *target, int height,
                                       int width, const Network &network) {
  __shared__ Positions positions;
  positions.find(height, width, source_height, source_width);
  const int x = blockIdx.x * WIDE + threadIdx.x, y = blockIdx.y * HIGH + threadIdx.y;
  if (x >= width || y >= height) return;
  const Position across = positions.column[threadIdx.x], down = positions.row[threadIdx.y];
  const Pixel pixel = between(frame.at(down.first, across.first), frame.at(down.first, across.second),
                              frame.at(down.second, across.first), frame.at(down.second, across.second), across, down);
  const long long plane = static_cast<long long>(height) * width;
  target += blockIdx.z * network.channels * plane;
  write(target + static_cast<long long>(y) * width + x, plane, pixel, frame.grey(), network);
}

template <class Frame>
__device__ __forceinline__ void cut_tiles(Frame frame, const int *origins, float *target, int tile,
                                          const Network &network) {
  const int x = blockIdx.x * WIDE + threadIdx.x, y = blockIdx.y * HIGH + threadIdx.y;
  if (x >= tile || y >= tile) return;
  const int *origin = origins + 2 * blockIdx.z;
  const Pixel pixel = frame.at(origin[0] + y, origin[1] + x);
  const long long plane = static_cast<long long>(tile) * tile;
  target += blockIdx.z * network.channels * plane;
  write(target + static_cast<long long>(y) * tile + x, plane, pixel, frame.grey(), network);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    preprocess(const unsigned char *frames, long long stride, int pitch, int source_height, int source_width,
               int source_channels, float *target, int height, int width, int channels, int reversed, float scale0,
               float scale1, float scale2, float bias0, float bias1, float bias2) {
  resize(Interleaved{frames + blockIdx.z * stride, pitch, source_channels}, source_height, source_width, target, height,
         width, {channels, reversed, {scale0, scale1, scale2}, {bias0, bias1, bias2}});
}

extern "C" __global__ void __launch_bounds__(256)
    preprocess_nv12(const unsigned char *frames, long long stride, int pitch, int source_height, int source_width,
                    float *target, int height, int width, int channels, int reversed, float scale0, float scale1,
                    float scale2, float bias0, float bias1, float bias2) {
  resize(Nv12{frames + blockIdx.z * stride, pitch, source_height}, source_height, source_width, target, height, width,
         {channels, reversed, {scale0, scale1, scale2}, {bias0, bias1, bias2}});
}

extern "C" __global__ void __launch_bounds__(256)
    preprocess_tiles(const unsigned char *frame, int pitch, int source_channels, const int *origins, float *target,
                     int tile, int channels, int reversed, float scale0, float scale1, float scale2, float bias0,
                     float bias1, float bias2) {
  cut_tiles(Interleaved{frame, pitch, source_channels}, origins, target, tile,
            {channels, reversed, {scale0, scale1, scale2}, {bias0, bias1, bias2}});
}

extern "C" __global__ void __launch_bounds__(256)
    preprocess_tiles_nv12(const unsigned char *frame, int pitch, int source_height, const int *origins, float *target,
                          int tile, int channels, int reversed, float scale0, float scale1, float scale2, float bias0,
                          float bias1, float bias2) {
  cut_tiles(Nv12{frame, pitch, source_height}, origins, target, tile,
            {channels, reversed, {scale0, scale1, scale2}, {bias0, bias1, bias2}});
}
