// From maps to scores and verdicts, and what joins several maps into one. Results do not depend on the order in which
// blocks run. A NaN in a picture makes its score NaN.
//
//   reduce_partial   maximum or sum of each part of a map, over the pixels at least margin from the border
//     const float *map     (n, height, width)
//     int height, width
//     float *partial       (n, blocks), blocks = grid.x
//     int margin
//     int mean             0: maxima, 1: sums
//   grid (blocks, n, 1), block (256, 1, 1), shared 0; any number of blocks: height * width / 4096, rounded up, is good
//
//   reduce_finish    equals adedge.scoring.image_scores, after reduce_partial or uniform_reduce
//     const float *partial (n, blocks)
//     int blocks
//     float pixels         that count: (height - 2 margin) * (width - 2 margin); of maxima not used
//     int mean
//     float threshold
//     float *score         (n,)
//     unsigned char *verdict (n,), or null: 0 score <= threshold, 1 score > threshold, 2 the score is NaN
//   grid (n, 1, 1), block (256, 1, 1), shared 0
//
//   merge_maximum    equals adedge.runtime.tiling.merge_maximum: raise a frame's map to its tiles' maps
//     const float *tiles   (n, tile, tile)
//     const int *origins   (n, 2): row and column of each tile's upper left pixel
//     int n, tile
//     float *merged        (height, width)
//     int height, width
//     int first            1: merged is filled anew, with minus infinity where no tile lies; 0: it keeps what it has
//   grid (ceil(width / 32), ceil(height / 8), 1), block (32, 8, 1), shared 0
//
//   upsample_sum_float, upsample_sum_half    the weighted sum of maps of several resolutions at the size of a picture
//     const T *level0 ... *level3     (n, height_i, width_i); null from the first that is not there
//     int height0, width0 ... height3, width3
//     float weight0 ... weight3
//     float *map           (n, height, width)
//     int height, width
//   Bilinear with half-pixel centres: torch.nn.functional.interpolate(mode="bilinear", align_corners=False). A level of
//   the picture's own size is copied, so one level of weight 1 is the conversion of a ready map from half.
//   grid (ceil(width / 32), ceil(height / 8), n), block (32, 8, 1), shared 0
//
//   normalise        equals adedge.scoring.normalise: z = (value - mean) / std, in place
//     float *values
//     long long count
//     float mean, inverse_std
//   grid (up to ceil(count / 256), 1, 1), block (256, 1, 1), shared 0
#include "common.cuh"

namespace {

constexpr int THREADS = 256;

template <class T>
__device__ __forceinline__ T joined(T a, T b, int mean) {
  return mean ? a + b : larger(a, b);
}

// The maximum or sum of what all threads of a block have, in thread 0.
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

template <class T>
__device__ __forceinline__ float bilinear(const T *level, int height, int width, int y, int x, float scale_y,
                                          float scale_x) {
  const float row = fmaxf((y + 0.5f) * scale_y - 0.5f, 0.0f), column = fmaxf((x + 0.5f) * scale_x - 0.5f, 0.0f);
  int top = static_cast<int>(row), left = static_cast<int>(column);
  top = top < height - 1 ? top : height - 1;
  left = left < width - 1 ? left : width - 1;
  const int below = top + 1 < height ? width : 0, right = left + 1 < width ? 1 : 0;
  const float down = row - top, across = column - left;
  const T *from = level + static_cast<long long>(top) * width + left;
  // No neighbour of weight 0 is read: it may be infinite.
  const float upper =
      across > 0 ? as_float(from[0]) * (1 - across) + as_float(from[right]) * across : as_float(from[0]);
  if (!(down > 0)) return upper;
  from += below;
  const float lower =
      across > 0 ? as_float(from[0]) * (1 - across) + as_float(from[right]) * across : as_float(from[0]);
  return upper * (1 - down) + lower * down;
}

template <class T>
struct Level {
  const T *map;
  int height, width;
  float weight;
};

template <class T>
__device__ __forceinline__ void upsample_sum(const Level<T> *levels, float *map, int height, int width) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const Level<T> &level = levels[i];
    if (!level.map) break;
    const T *picture = level.map + static_cast<long long>(blockIdx.z) * level.height * level.width;
    sum += level.weight * bilinear(picture, level.height, level.width, y, x, static_cast<float>(level.height) / height,
                                   static_cast<float>(level.width) / width);
  }
  map[(static_cast<long long>(blockIdx.z) * height + y) * width + x] = sum;
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
    // All loads are under way before the first of them is waited for.
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
    reduce_finish(const float *partial, int blocks, float pixels, int mean, float threshold, float *score,
                  unsigned char *verdict) {
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
  if (threadIdx.x != 0) return;
  score[blockIdx.x] = result;
  if (verdict) verdict[blockIdx.x] = result != result ? 2 : result > threshold;
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

extern "C" __global__ void __launch_bounds__(256)
    upsample_sum_float(const float *level0, const float *level1, const float *level2, const float *level3, int height0,
                       int width0, int height1, int width1, int height2, int width2, int height3, int width3,
                       float weight0, float weight1, float weight2, float weight3, float *map, int height, int width) {
  const Level<float> levels[] = {{level0, height0, width0, weight0},
                                 {level1, height1, width1, weight1},
                                 {level2, height2, width2, weight2},
                                 {level3, height3, width3, weight3}};
  upsample_sum(levels, map, height, width);
}

extern "C" __global__ void __launch_bounds__(256)
    upsample_sum_half(const __half *level0, const __half *level1, const __half *level2, const __half *level3,
                      int height0, int width0, int height1, int width1, int height2, int width2, int height3,
                      int width3, float weight0, float weight1, float weight2, float weight3, float *map, int height,
                      int width) {
  const Level<__half> levels[] = {{level0, height0, width0, weight0},
                                  {level1, height1, width1, weight1},
                                  {level2, height2, width2, weight2},
                                  {level3, height3, width3, weight3}};
  upsample_sum(levels, map, height, width);
}

extern "C" __global__ void __launch_bounds__(256)
    normalise(float *values, long long count, float mean, float inverse_std) {
  for (long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS)
    values[i] = (values[i] - mean) * inverse_std;
}
