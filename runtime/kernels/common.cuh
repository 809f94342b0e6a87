// Shared by several families of kernels. Plain CUDA C++ without other headers.
#pragma once

// A block of the DSSIM and filter kernels covers ROWS rows and up to COLUMNS columns: one thread per column for the
// vertical sums, one thread per row and SEGMENT columns for the horizontal sums.
constexpr int ROWS = 8;
constexpr int COLUMNS = 256;
constexpr int SEGMENT = 8;
constexpr int SEGMENTS = COLUMNS / SEGMENT;

// 1 / x, accurate to about the last bit unless x is very small or very large.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}

// Pixel index with the picture mirrored at its border, edge pixel repeated, as many times as needed:
// c b a | a b c | c b a. SciPy's "reflect", OpenCV's BORDER_REFLECT.
__device__ __forceinline__ int mirrored(int index, int length) {
  // Usually zero or one iteration; more only if the picture is smaller than the window.
  while (static_cast<unsigned>(index) >= static_cast<unsigned>(length))
    index = index < 0 ? -1 - index : 2 * length - 1 - index;
  return index;
}

// NVRTC does not define INFINITY.
__device__ __forceinline__ float infinite() { return __int_as_float(0x7f800000); }

// Maximum and minimum; NaN propagates as in NumPy.
__device__ __forceinline__ float larger(float a, float b) { return a >= b || a != a ? a : b; }
__device__ __forceinline__ float smaller(float a, float b) { return a <= b || a != a ? a : b; }

// Position of a column's sums in a row of shared memory: one element of padding after every SEGMENT, so that threads
// which read SEGMENT elements apart access different banks.
__device__ __host__ constexpr int padded(int place) { return place + place / SEGMENT; }

// The columns that a block sums vertically. Position p in a row of shared memory is picture column x0 - before + p.
//
// If the block covers the picture's whole width, the mirrored columns at both sides are copies of its own columns and
// cost a store instead of a sum; otherwise the block recomputes the sums of its neighbours' columns.
struct Columns {
  int first;  // picture column of the first sum, may lie outside the picture
  int count;
  int before, after;
  int width;
  bool whole;

  // The block's own columns are the ``covered`` columns from x0 on.
  __device__ Columns(int x0, int covered, int before, int after, int width)
      : before(before), after(after), width(width) {
    whole = width <= covered && width >= before + after;
    int inside = width - x0 < covered ? width - x0 : covered;
    first = whole ? 0 : x0 - before;
    count = whole ? width : inside + before + after;
  }

  // The picture column to read for the index-th sum.
  __device__ int column(int index) const { return mirrored(first + index, width); }

  // Position of the index-th sum in a row of shared memory.
  __device__ int place(int index) const { return padded(whole ? before + index : index); }

  // Position of its mirror image; the same position if it has none.
  __device__ int image(int index) const {
    if (whole && index < before) return padded(before - 1 - index);
    if (whole && index >= width - after) return padded(before + 2 * width - 1 - index);
    return place(index);
  }
};

// Write one segment of a map's row: the pixels from x on that lie inside the picture.
__device__ __forceinline__ void store_segment(float *row, int x, int width, const float *values) {
  if (x + SEGMENT <= width && width % 4 == 0) {
    float4 *target = reinterpret_cast<float4 *>(row + x);
    target[0] = make_float4(values[0], values[1], values[2], values[3]);
    target[1] = make_float4(values[4], values[5], values[6], values[7]);
    return;
  }
#pragma unroll
  for (int i = 0; i < SEGMENT; i++)
    if (x + i < width) row[x + i] = values[i];
}
