// Filters of anomaly maps: mean over a square window, Gaussian, greyscale opening. Maps are mirrored at their border
// with the edge pixel repeated (SciPy's "reflect"), even if they are smaller than the window.
//
// A NaN or an infinity makes at least every window that contains it NaN (uniform, gaussian), or propagates as in
// NumPy's minimum and maximum (opening).
//
//   uniform     equals adedge.scoring.uniform_filter: pixel i is the mean of i - size / 2 ... i - size / 2 + size - 1
//     const float *map     (n, height, width)
//     float *filtered      (n, height, width), must not overlap map; 16-byte aligned
//     int height, width
//     int size             2 ... 256
//     int rows             rows per block, a multiple of 8: as in dssim.cu, best between size / 2 and 2 size
//   grid (ceil(width / 256), ceil(height / rows), n), block (256, 1, 1), shared 0
//
//   uniform_reduce   uniform, followed by a reduction of the result as by reduce_partial in reduce.cu
//     ... the arguments of uniform, then
//     float *partial       (n, blocks per picture), blocks = grid.x * grid.y
//     int margin           pixels to ignore at each border
//     int mean             0: maxima, 1: sums
//   grid, block, shared as uniform
//
//   gaussian    equals adedge.scoring.gaussian_filter
//     const float *map, float *filtered, int height, int width    as above
//     const float *weights (2 radius + 1), adedge.scoring.gaussian_weights
//     int radius           1 ... 128
//   grid (ceil(width / 256), ceil(height / 8), n), block (256, 1, 1), shared 0
//
//   opening3    equals adedge.scoring.opening for size 3, a cross, in one pass
//     const float *map, float *filtered, int height, int width    as above
//   grid (ceil(width / 32), ceil(height / 8), n), block (32, 8, 1), shared 0
//
//   erode, dilate    in sequence equal adedge.scoring.opening for any size; dilate takes the output of erode
//     const float *map, float *filtered, int height, int width    as above
//     int size             size of the ellipse, at least 3; time grows with its area
//   grid (ceil(width / 32), ceil(height / 8), n), block (32, 8, 1), shared 0
//
// The mean uses a running sum down each column, restarted in each block and written 8 rows at a time to shared memory,
// where each thread runs a sum across 8 pixels of a row. Each value of the map is read from memory about once: values
// that leave the window were read shortly before, and the size - 1 rows that two blocks share are cached. The Gaussian
// also processes 8 pixels per thread in both directions, so that each value read contributes to 8 sums.
#include "common.cuh"

namespace {

constexpr int MOST_SIZE = 256;
constexpr int MOST_RADIUS = 128;
constexpr int THREADS = 256;
constexpr int STRIDE = padded(COLUMNS + MOST_SIZE - 1) + 1;
// Passes over the columns that a block sums: more columns than threads, because it also needs its neighbours' columns.
constexpr int TURNS = (COLUMNS + MOST_SIZE - 1 + THREADS - 1) / THREADS;

// The maximum (mean 0) or sum over all threads of a block, in thread 0.
__device__ __forceinline__ float reduced(float value, int mean) {
  __shared__ float of_warp[THREADS / 32];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    float other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = mean ? value + other : larger(value, other);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < THREADS / 32; warp++) value = mean ? value + of_warp[warp] : larger(value, of_warp[warp]);
  return value;
}

__device__ __forceinline__ void uniform_rows(const float *map, float *filtered, int height, int width, int size,
                                             int rows, float *partial, int margin, int mean) {
  __shared__ float sums[ROWS * STRIDE];

  const int before = size / 2, after = size - 1 - before;
  const int x0 = blockIdx.x * COLUMNS, top = blockIdx.y * rows;
  const int bottom = top + rows < height ? top + rows : height;
  const long long plane = static_cast<long long>(height) * width;
  const Columns columns(x0, COLUMNS, before, after, width);
  const float share = 1.0f / (static_cast<float>(size) * size);
  map += blockIdx.z * plane;
  filtered += blockIdx.z * plane;

  const int row = threadIdx.x / SEGMENTS, segment = threadIdx.x % SEGMENTS;
  const int x = x0 + segment * SEGMENT;
  float found = mean ? 0.0f : -infinite();

  // The window of the first row, without its last row, which is added in the loop below.
  float running[TURNS] = {};
#pragma unroll
  for (int turn = 0; turn < TURNS; turn++) {
    const int index = threadIdx.x + turn * THREADS;
    if (index >= columns.count) break;
    const float *column = map + columns.column(index);
    for (int k = -before; k < after; k += ROWS) {
      // Issue several loads before waiting for the first.
      float values[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; i++)
        values[i] = k + i < after ? column[static_cast<long long>(mirrored(top + k + i, height)) * width] : 0.0f;
#pragma unroll
      for (int i = 0; i < ROWS; i++) running[turn] += values[i];
    }
  }
  for (int y0 = top; y0 < bottom; y0 += ROWS) {
    const bool inside = y0 - before >= 0 && y0 + ROWS - 1 + after < height;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
      const int index = threadIdx.x + turn * THREADS;
      if (index >= columns.count) break;
      const float *column = map + columns.column(index);
      const int place = columns.place(index), image = columns.image(index);
      float entering[ROWS], leaving[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        const int last = y0 + i + after, first = y0 + i - before;
        entering[i] = column[static_cast<long long>(inside ? last : mirrored(last, height)) * width];
        leaving[i] = column[static_cast<long long>(inside ? first : mirrored(first, height)) * width];
      }
      float sum = running[turn];
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        sum += entering[i];
        sums[i * STRIDE + place] = sum;
        if (image != place) sums[i * STRIDE + image] = sum;
        sum -= leaving[i];
      }
      running[turn] = sum;
    }
    __syncthreads();
    const int y = y0 + row;
    if (x < width && y < bottom) {
      const float *from = sums + row * STRIDE + segment * (SEGMENT + 1);
      float sum = 0;
#pragma unroll 8
      for (int k = 0; k < size; k++) sum += from[padded(k)];
      float values[SEGMENT];
#pragma unroll
      for (int i = 0; i < SEGMENT; i++) {
        values[i] = sum * share;
        // The last windows of a picture's last segment read uninitialised elements, but are not stored.
        if (i + 1 < SEGMENT) sum += from[padded(size + i)] - from[i];
      }
      store_segment(filtered + static_cast<long long>(y) * width, x, width, values);
      if (partial && y >= margin && y < height - margin) {
#pragma unroll
        for (int i = 0; i < SEGMENT; i++)
          if (x + i >= margin && x + i < width - margin) found = mean ? found + values[i] : larger(found, values[i]);
      }
    }
    __syncthreads();
  }
  if (partial) {
    found = reduced(found, mean);
    if (threadIdx.x == 0) partial[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = found;
  }
}

// Weighted sums for 8 neighbouring pixels; sum i covers read(i) ... read(i + 2 radius). ``weights`` has 2 radius + 1
// values followed by ROWS - 1 zeros.
template <class Read>
__device__ __forceinline__ void weighted(const float *weights, int radius, Read read, float *sums) {
  static_assert(ROWS == SEGMENT, "both directions take as many pixels");
#pragma unroll
  for (int i = 0; i < ROWS; i++) sums[i] = 0;
  // Element k enters sum i with weight k - i: each step replaces one weight of a sliding window.
  float window[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i++) window[i] = 0;
  const int places = 2 * radius + ROWS;
  for (int k0 = 0; k0 < places; k0 += ROWS) {
    // As in uniform_rows: issue all loads before the first use.
    float values[ROWS];
#pragma unroll
    for (int j = 0; j < ROWS; j++) values[j] = k0 + j < places ? read(k0 + j) : 0.0f;
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
      window[j] = k0 + j < places ? weights[k0 + j] : 0.0f;
#pragma unroll
      for (int i = 0; i < ROWS; i++) sums[i] = fmaf(window[(j - i + ROWS) % ROWS], values[j], sums[i]);
    }
  }
}

// Minimum or maximum over the footprint around (x, y). Row dy of the ellipse extends rint(sqrt(r^2 - dy^2)) pixels to
// both sides, r = size / 2; an even ellipse lacks the last row and column. The dilation uses the mirrored ellipse.
template <bool dilation>
__device__ __forceinline__ void fold(const float *map, float *filtered, int height, int width, int size) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  const long long plane = static_cast<long long>(height) * width;
  map += blockIdx.z * plane;
  const int radius = size / 2, last = size - 1 - radius;
  float folded = map[static_cast<long long>(y) * width + x];
  for (int dy = -radius; dy <= last; dy++) {
    const float *row = map + static_cast<long long>(mirrored(dilation ? y - dy : y + dy, height)) * width;
    const int reach = static_cast<int>(rintf(sqrtf(static_cast<float>(radius * radius - dy * dy))));
    for (int dx = -reach; dx <= (reach < last ? reach : last); dx++) {
      const float value = row[mirrored(dilation ? x - dx : x + dx, width)];
      folded = dilation ? larger(folded, value) : smaller(folded, value);
    }
  }
  filtered[blockIdx.z * plane + static_cast<long long>(y) * width + x] = folded;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    uniform(const float *map, float *filtered, int height, int width, int size, int rows) {
  uniform_rows(map, filtered, height, width, size, rows, nullptr, 0, 0);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    uniform_reduce(const float *map, float *filtered, int height, int width, int size, int rows, float *partial,
                   int margin, int mean) {
  uniform_rows(map, filtered, height, width, size, rows, partial, margin, mean);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    gaussian(const float *map, float *filtered, int height, int width, const float *weights, int radius) {
  constexpr int PLACES = padded(COLUMNS + 2 * MOST_RADIUS - 1) + 1;
  __shared__ float sums[ROWS * PLACES];
  __shared__ float taps[2 * MOST_RADIUS + ROWS];

  const int x0 = blockIdx.x * COLUMNS, y0 = blockIdx.y * ROWS;
  const long long plane = static_cast<long long>(height) * width;
  const Columns columns(x0, COLUMNS, radius, radius, width);
  map += blockIdx.z * plane;
  filtered += blockIdx.z * plane;
  for (int k = threadIdx.x; k < 2 * radius + ROWS; k += THREADS) taps[k] = k <= 2 * radius ? weights[k] : 0.0f;
  __syncthreads();
  for (int index = threadIdx.x; index < columns.count; index += THREADS) {
    const float *column = map + columns.column(index);
    float values[ROWS];
    weighted(
        taps, radius, [&](int k) { return column[static_cast<long long>(mirrored(y0 - radius + k, height)) * width]; },
        values);
#pragma unroll
    for (int i = 0; i < ROWS; i++)
      sums[i * PLACES + columns.place(index)] = sums[i * PLACES + columns.image(index)] = values[i];
  }
  __syncthreads();
  const int y = y0 + threadIdx.x / SEGMENTS, segment = threadIdx.x % SEGMENTS;
  const int x = x0 + segment * SEGMENT;
  if (x >= width || y >= height) return;
  const float *from = sums + (threadIdx.x / SEGMENTS) * PLACES + segment * (SEGMENT + 1);
  // Elements beyond the mirror image of the picture's end are uninitialised; in stored sums their weight is 0.
  const int written = (width - x < COLUMNS ? width - x : COLUMNS) + 2 * radius;
  float values[SEGMENT];
  weighted(taps, radius, [&](int k) { return k < written ? from[padded(k)] : 0.0f; }, values);
  store_segment(filtered + static_cast<long long>(y) * width, x, width, values);
}

extern "C" __global__ void __launch_bounds__(256) opening3(const float *map, float *filtered, int height, int width) {
  constexpr int WIDE = 32, HIGH = 8;
  __shared__ float pixels[HIGH + 4][WIDE + 4];
  __shared__ float eroded[HIGH + 2][WIDE + 2];
  const int x0 = blockIdx.x * WIDE, y0 = blockIdx.y * HIGH;
  const long long plane = static_cast<long long>(height) * width;
  map += blockIdx.z * plane;
  const int thread = threadIdx.y * WIDE + threadIdx.x;
  for (int i = thread; i < (HIGH + 4) * (WIDE + 4); i += WIDE * HIGH) {
    const int y = i / (WIDE + 4), x = i % (WIDE + 4);
    pixels[y][x] = map[static_cast<long long>(mirrored(y0 + y - 2, height)) * width + mirrored(x0 + x - 2, width)];
  }
  __syncthreads();
  // Outside the picture the erosion of mirrored pixels is the mirrored erosion, because the cross is symmetric.
  for (int i = thread; i < (HIGH + 2) * (WIDE + 2); i += WIDE * HIGH) {
    const int y = i / (WIDE + 2), x = i % (WIDE + 2);
    eroded[y][x] = smaller(
        smaller(smaller(pixels[y][x + 1], pixels[y + 2][x + 1]), smaller(pixels[y + 1][x], pixels[y + 1][x + 2])),
        pixels[y + 1][x + 1]);
  }
  __syncthreads();
  const int x = threadIdx.x, y = threadIdx.y;
  if (x0 + x >= width || y0 + y >= height) return;
  filtered[blockIdx.z * plane + static_cast<long long>(y0 + y) * width + x0 + x] =
      larger(larger(larger(eroded[y][x + 1], eroded[y + 2][x + 1]), larger(eroded[y + 1][x], eroded[y + 1][x + 2])),
             eroded[y + 1][x + 1]);
}

extern "C" __global__ void __launch_bounds__(256)
    erode(const float *map, float *filtered, int height, int width, int size) {
  fold<false>(map, filtered, height, width, size);
}

extern "C" __global__ void __launch_bounds__(256)
    dilate(const float *map, float *filtered, int height, int width, int size) {
  fold<true>(map, filtered, height, width, size);
}
