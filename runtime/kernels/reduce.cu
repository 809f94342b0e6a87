// Reduces maps to scores, and merges the maps of tiles. Results do not depend on the order in which blocks run. A NaN
// in a map makes its score NaN.
//
//   reduce_partial   maximum or sum of each part of a map, over the pixels at least margin inside the border
//     const float *map     (n, height, width)
//     int height, width
//     float *partial       (n, blocks), blocks = grid.x
//     int margin
//     int mean             0: maxima, 1: sums
//   grid (blocks, n, 1), block (256, 1, 1), shared 0; any number of blocks; recommended: ceil(height * width / 4096)
//
//   reduce_finish    equals adedge.scoring.image_scores, after reduce_partial or uniform_reduce
//     const float *partial (n, blocks)
//     int blocks
//     float pixels         number of pixels: (height - 2 margin) * (width - 2 margin); not used for maxima
//     int mean
//     float *score         (n,)
//   grid (n, 1, 1), block (256, 1, 1), shared 0
//
//   merge_maximum    equals adedge.runtime.tiling.merge_maximum: merges tile maps into a frame's map by maximum
//     const float *tiles   (n, tile, tile)
//     const int *origins   (n, 2): row and column of each tile's upper left pixel
//     int n, tile
//     float *merged        (height, width)
//     int height, width
//     int first            1: merged is initialised, with minus infinity outside all tiles; 0: merged is updated
//   grid (ceil(width / 32), ceil(height / 8), 1), block (32, 8, 1), shared 0
//
//   copy_maps        copies maps
//     const float *map
//     float *copied
//     long long count      number of values
//   grid (ceil(count / 256), 1, 1), block (256, 1, 1), shared 0
#include "common.cuh"

namespace {

constexpr int THREADS = 256;

template <class T>
__device__ __forceinline__ T joined(T a, T b, int mean) {
  return mean ? a + b : larger(a, b);
}

// The maximum or sum over all threads of a block, in thread 0.
template <class T>
__device__ __forceinline__ T joined_in_block(T value, int mean) {
  __shared__ T of_thread[THREADS];
  of_thread[threadIdx.x] = value;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half)
      of_thread[threadIdx.x] = joined(of_thread[threadIdx.x], of_thread[threadIdx.x + half], mean);
    __syncthreads();
  }
  return of_thread[0];
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    reduce_partial(const float *map, int height, int width, float *partial, int margin, int mean) {
  const int inner_height = height - 2 * margin, inner_width = width - 2 * margin;
  map += static_cast<long long>(blockIdx.y) * height * width + static_cast<long long>(margin) * width + margin;
  const int count = inner_height * inner_width;
  const int step = gridDim.x * THREADS;
  const float nothing = mean ? 0.0f : -infinite();
  float found = nothing;
  for (int first = blockIdx.x * THREADS + threadIdx.x; first < count; first += 4 * step) {
    // Issue all loads before waiting for the first.
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int pixel = first + i * step;
      values[i] =
          pixel < count ? map[static_cast<long long>(pixel / inner_width) * width + pixel % inner_width] : nothing;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) found = joined(found, values[i], mean);
  }
  found = joined_in_block(found, mean);
  if (threadIdx.x == 0) partial[blockIdx.y * gridDim.x + blockIdx.x] = found;
}

extern "C" __global__ void __launch_bounds__(256)
    reduce_finish(const float *partial, int blocks, float pixels, int mean, float *score) {
  partial += static_cast<long long>(blockIdx.x) * blocks;
  float result;
  if (mean) {
    double sum = 0;
    for (int i = threadIdx.x; i < blocks; i += THREADS) sum += partial[i];
    result = static_cast<float>(joined_in_block(sum, mean) / pixels);
  } else {
    float found = -infinite();
    for (int i = threadIdx.x; i < blocks; i += THREADS) found = larger(found, partial[i]);
    result = joined_in_block(found, mean);
  }
  if (threadIdx.x == 0) score[blockIdx.x] = result;
}

extern "C" __global__ void __launch_bounds__(256) merge_maximum(const float *tiles, const int *origins, int n, int tile,
                                                                float *merged, int height, int width, int first) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  const long long pixel = static_cast<long long>(y) * width + x;
  float found = first ? -infinite() : merged[pixel];
  for (int i = 0; i < n; i++) {
    const int row = y - origins[2 * i], column = x - origins[2 * i + 1];
    if (row >= 0 && row < tile && column >= 0 && column < tile)
      found = larger(found, tiles[(static_cast<long long>(i) * tile + row) * tile + column]);
  }
  merged[pixel] = found;
}

extern "C" __global__ void __launch_bounds__(256) copy_maps(const float *map, float *copied, long long count) {
  const long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  if (i < count) copied[i] = map[i];
}
