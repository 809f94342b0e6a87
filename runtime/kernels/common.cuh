// What several families of kernels share. Plain CUDA C++, without any other header.
#pragma once

// A block of DSSIM and of the filters covers ROWS rows and up to COLUMNS columns: one thread for each column while it
// sums down, and one for each row and SEGMENT columns while it sums across.
constexpr int ROWS = 8;
constexpr int COLUMNS = 256;
constexpr int SEGMENT = 8;
constexpr int SEGMENTS = COLUMNS / SEGMENT;

// 1 / x to the last bit or so, of numbers that are neither tiny nor huge.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}

// Pixel index of a picture that is mirrored at its border, the edge repeated, as often as it takes:
// c b a | a b c | c b a. SciPy's "reflect", OpenCV's BORDER_REFLECT.
__device__ __forceinline__ int mirrored(int index, int length) {
  // Mostly inside, else once around; more often only where the picture is smaller than the window.
  while (static_cast<unsigned>(index) >= static_cast<unsigned>(length))
    index = index < 0 ? -1 - index : 2 * length - 1 - index;
  return index;
}

// NVRTC has no INFINITY.
__device__ __forceinline__ float infinite() { return __int_as_float(0x7f800000); }

// The larger and the smaller of two; NaN where one is, as NumPy's maximum and minimum.
__device__ __forceinline__ float larger(float a, float b) { return a >= b || a != a ? a : b; }
__device__ __forceinline__ float smaller(float a, float b) { return a <= b || a != a ? a : b; }

// Where a column's sums lie in a row of shared memory: one gap after every SEGMENT places, so that threads which read
// SEGMENT places apart meet different banks.
__device__ __host__ constexpr int padded(int place) { return place + place / SEGMENT; }

// The columns that a block sums down. Place p of a row of shared memory is picture column x0 - before + p.
//
// Where the block covers the picture's whole width, the mirrored columns at both sides are copies of columns that it has
// anyway and cost a store instead of a sum; else columns of the neighbours are summed again.
struct Columns {
  int first;  // picture column of the first to sum, may lie outside
  int count;
  int before, after;
  int width;
  bool whole;

  // ``covered`` columns from x0 on are the block's own.
  __device__ Columns(int x0, int covered, int before, int after, int width)
      : before(before), after(after), width(width) {
    whole = width <= covered && width >= before + after;
    int inside = width - x0 < covered ? width - x0 : covered;
    first = whole ? 0 : x0 - before;
    count = whole ? width : inside + before + after;
  }

  // The picture column to read for the index-th to sum.
  __device__ int column(int index) const { return mirrored(first + index, width); }

  // Where the index-th sum belongs in a row of shared memory.
  __device__ int place(int index) const { return padded(whole ? before + index : index); }

  // And where its mirror image does; the same place where it has none.
  __device__ int image(int index) const {
    if (whole && index < before) return padded(before - 1 - index);
    if (whole && index >= width - after) return padded(before + 2 * width - 1 - index);
    return place(index);
  }
};

// Write a segment of a row of a map, the pixels from x on that lie inside the picture.
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
