// DSSIM maps of two image batches: (1 - SSIM) / 2 per pixel and channel, averaged over the channels.
//
// Equals adedge.scoring.dssim_map: uniform K x K window, sample variances, C1 = (0.01 L)^2, C2 = (0.03 L)^2 for the
// data range L, pictures mirrored at the border with the edge pixel repeated. Within 1e-4 for images that span L. A NaN
// or an infinity makes exactly the windows that contain it NaN.
//
//   dssim3, dssim5 ... dssim15     (K = 3, 5, 7, 9, 11, 13, 15)
//     const float *a, *b   (n, channels, height, width), contiguous
//     float *map           (n, height, width); 16-byte aligned
//     int channels, height, width
//     int rows             rows of the picture per block, a multiple of 8; see below
//     float range          L
//   grid   (parts, ceil(height / rows), n), parts = 1 if width <= 256, else ceil(width / 240)
//   block  (threads, 1, 1), threads = the greater of columns and reached, rounded up to a multiple of 32: at most 256
//            columns = width / parts, rounded up, then up to a multiple of 8: the columns that a block covers
//            reached = width if parts = 1 and K / 2 <= width, else columns + K - 1: the columns that it sums
//   shared 0
//   rows: small values (8) give many blocks; with large ones (64) fewer blocks re-read the K - 1 rows they share.
//   Choose the largest of 64, 32, 16, 8 that still gives each multiprocessor two blocks, or 8 if none does.
//
// Formula. With s = a + b - L, d = a - b, and m and v the mean and variance (divided by n) over the window,
//   A = m(d)^2        B = (m(s) + L)^2 + A + 2 C1        V = v(s) + v(d) + 2 C2 (n - 1) / n
//   (1 - SSIM) / 2 = (A V + v(d) (B - 2 A)) / (B V)
// This takes four moments instead of SSIM's five, and one division. Nothing is subtracted from 1, which preserves
// precision for nearly equal images; s is centred because v = m(s^2) - m(s)^2 loses precision far from 0.
//
// Work distribution. A block moves down its rows 8 at a time, handling all channels of 8 rows before the next 8. Each
// thread computes vertical sums for one column: 8 windows from 8 + K - 1 pixels of each image, as suffix sums of the
// first K plus prefix sums of the rest, with 3 additions per window and no subtraction. The sums (4 floats) go to
// shared memory; the thread that owns 8 pixels of a row reads them and sums horizontally in the same way, while the
// pixels of the next channel are loaded. Per pixel and channel this costs 1.75 reads (K = 7) of each image, most of
// them cached, and 16 bytes written to and 28 read from shared memory.
#include "common.cuh"

namespace {

constexpr int THREADS = 256;  // at most

struct Moments {
  float s, d, ss, dd;
  __device__ __forceinline__ void add(float4 m) { s += m.x, d += m.y, ss += m.z, dd += m.w; }
  __device__ __forceinline__ void add_pixel(float s_, float d_) {
    s += s_, d += d_;
    ss = fmaf(s_, s_, ss);
    dd = fmaf(d_, d_, dd);
  }
};

__device__ __forceinline__ float4 together(Moments a, Moments b) {
  return make_float4(a.s + b.s, a.d + b.d, a.ss + b.ss, a.dd + b.dd);
}

struct Constants {
  float inverse_n, range, two_c1, two_c2;
};

__device__ __forceinline__ float dissimilarity(float4 sums, Constants c) {
  float mean_s = sums.x * c.inverse_n, mean_d = sums.y * c.inverse_n;
  float square_d = mean_d * mean_d;
  float variance_s = fmaf(sums.z, c.inverse_n, -mean_s * mean_s);
  float variance_d = fmaf(sums.w, c.inverse_n, -square_d);
  float mean = mean_s + c.range;
  float luminance = fmaf(mean, mean, square_d) + c.two_c1;
  float variance = variance_s + variance_d + c.two_c2;
  return fmaf(square_d, variance, variance_d * fmaf(-2.0f, square_d, luminance)) * reciprocal(luminance * variance);
}

// One column of both images, with all rows that the windows of ROWS pixels cover.
template <int K>
struct Pixels {
  float a[ROWS + K - 1], b[ROWS + K - 1];

  __device__ __forceinline__ void load(const float *from_a, const float *from_b, int top, int height, int width) {
    if (top >= 0 && top + ROWS + K - 1 <= height) {
      from_a += static_cast<long long>(top) * width;
      from_b += static_cast<long long>(top) * width;
#pragma unroll
      for (int k = 0; k < ROWS + K - 1; k++) a[k] = from_a[k * width], b[k] = from_b[k * width];
    } else {
#pragma unroll
      for (int k = 0; k < ROWS + K - 1; k++) {
        int row = mirrored(top + k, height);
        a[k] = from_a[static_cast<long long>(row) * width], b[k] = from_b[static_cast<long long>(row) * width];
      }
    }
  }
};

// ROWS windows of K elements with consecutive starts. add(sums, k) adds element k to Moments; done(i, sums) receives
// window i.
template <int K, class Add, class Done>
__device__ __forceinline__ void sum_windows(Add add, Done done) {
  if (K < ROWS - 1) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      Moments sums{0, 0, 0, 0};
#pragma unroll
      for (int k = 0; k < K; k++) add(sums, i + k);
      done(i, together(sums, Moments{0, 0, 0, 0}));
    }
    return;
  }
  Moments suffix[ROWS], running{0, 0, 0, 0};
  suffix[ROWS - 1] = running;
#pragma unroll
  for (int k = K - 1; k >= 0; k--) {
    add(running, k);
    if (k < ROWS) suffix[k] = running;
  }
  Moments prefix{0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    if (i > 0) add(prefix, K + i - 1);
    done(i, together(suffix[i], prefix));
  }
}

template <int K>
__device__ __forceinline__ void dssim(const float *a, const float *b, float *map, int channels, int height, int width,
                                      int rows, float range) {
  constexpr int RADIUS = K / 2;
  constexpr int STRIDE = padded(COLUMNS + 2 * RADIUS - 1) + 1;
  __shared__ float4 sums[ROWS * STRIDE];

  const int segments = ((width + gridDim.x - 1) / gridDim.x + SEGMENT - 1) / SEGMENT;
  const int x0 = blockIdx.x * segments * SEGMENT, top = blockIdx.y * rows;
  const int bottom = top + rows < height ? top + rows : height;
  const long long plane = static_cast<long long>(height) * width;
  const Columns columns(x0, segments * SEGMENT, RADIUS, RADIUS, width);
  const float n = K * K;
  const Constants constants{1 / n, range, 2e-4f * range * range, 18e-4f * range * range * (n - 1) / n};
  a += blockIdx.z * channels * plane;
  b += blockIdx.z * channels * plane;
  map += blockIdx.z * plane;

  const int row = threadIdx.x / segments, segment = threadIdx.x % segments;
  const int x = x0 + segment * SEGMENT;
  const bool summing = static_cast<int>(threadIdx.x) < columns.count;
  const int column = summing ? columns.column(threadIdx.x) : 0;
  const int place = columns.place(threadIdx.x), image = columns.image(threadIdx.x);

  Pixels<K> pixels;
  if (summing) pixels.load(a + column, b + column, top - RADIUS, height, width);
  for (int y0 = top; y0 < bottom; y0 += ROWS) {
    float total[SEGMENT] = {};
    for (int channel = 0; channel < channels; channel++) {
      if (summing) {
        sum_windows<K>(
            [&](Moments &m, int k) { m.add_pixel(pixels.a[k] + pixels.b[k] - range, pixels.a[k] - pixels.b[k]); },
            [&](int i, float4 m) {
              sums[i * STRIDE + place] = m;
              if (image != place) sums[i * STRIDE + image] = m;
            });
        const bool more = channel + 1 < channels;
        const int next_top = more ? y0 : y0 + ROWS;
        const long long next = (more ? channel + 1 : 0) * plane + column;
        if (next_top < bottom) pixels.load(a + next, b + next, next_top - RADIUS, height, width);
      }
      __syncthreads();
      if (row < ROWS && x < width) {
        const float4 *from = sums + row * STRIDE + segment * (SEGMENT + 1);
        sum_windows<K>([&](Moments &m, int k) { m.add(from[padded(k)]); },
                       [&](int i, float4 m) { total[i] += dissimilarity(m, constants); });
      }
      __syncthreads();
    }
    if (row < ROWS && x < width && y0 + row < bottom) {
      const float share = 1.0f / channels;
#pragma unroll
      for (int i = 0; i < SEGMENT; i++) total[i] *= share;
      store_segment(map + static_cast<long long>(y0 + row) * width, x, width, total);
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    dssim3(const float *a, const float *b, float *map, int channels, int height, int width, int rows, float range) {
  dssim<3>(a, b, map, channels, height, width, rows, range);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    dssim5(const float *a, const float *b, float *map, int channels, int height, int width, int rows, float range) {
  dssim<5>(a, b, map, channels, height, width, rows, range);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    dssim7(const float *a, const float *b, float *map, int channels, int height, int width, int rows, float range) {
  dssim<7>(a, b, map, channels, height, width, rows, range);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    dssim9(const float *a, const float *b, float *map, int channels, int height, int width, int rows, float range) {
  dssim<9>(a, b, map, channels, height, width, rows, range);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    dssim11(const float *a, const float *b, float *map, int channels, int height, int width, int rows, float range) {
  dssim<11>(a, b, map, channels, height, width, rows, range);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    dssim13(const float *a, const float *b, float *map, int channels, int height, int width, int rows, float range) {
  dssim<13>(a, b, map, channels, height, width, rows, range);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    dssim15(const float *a, const float *b, float *map, int channels, int height, int width, int rows, float range) {
  dssim<15>(a, b, map, channels, height, width, rows, range);
}
