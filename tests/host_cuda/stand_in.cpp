// Kernels for tests of the driver and of the frame loop, in the form that host-compiled kernel libraries have:
// "scale" multiplies an array; the others are networks: "identity_and_inverse" gives x and 1 - x, "channel_mean" a map,
// "map_and_score" a map and the mean of its picture.

#include <cstring>

namespace {
struct Kernel {
  const char *name;
  int sizes[4];
  int number;
};
const Kernel KERNELS[] = {
    {"scale", {8, 4, 4}, 3},
    {"identity_and_inverse", {8, 8, 8, 4}, 4},
    {"channel_mean", {8, 8, 4, 4}, 4},
    {"map_and_score", {8, 8, 8, 4}, 4},
};
const Kernel *find(const char *name) {
  for (const Kernel &kernel : KERNELS)
    if (!strcmp(kernel.name, name)) return &kernel;
  return nullptr;
}
template <class T>
T value(void **params, int index) {
  return *static_cast<T *>(params[index]);
}
}  // namespace

extern "C" {

int host_has(const char *name) { return find(name) != nullptr; }

int host_params(const char *name, int *sizes, int capacity) {
  const Kernel *kernel = find(name);
  if (!kernel || kernel->number > capacity) return -1;
  memcpy(sizes, kernel->sizes, static_cast<size_t>(kernel->number) * sizeof(int));
  return kernel->number;
}

int host_launch(const char *name, const unsigned *, const unsigned *, unsigned, void **params) {
  if (!strcmp(name, "scale")) {  // (float *x, float factor, int n)
    for (int i = 0; i < value<int>(params, 2); i++) value<float *>(params, 0)[i] *= value<float>(params, 1);
  } else if (!strcmp(name, "identity_and_inverse")) {  // (const float *x, float *same, float *inverse, int n)
    for (int i = 0; i < value<int>(params, 3); i++) {
      value<float *>(params, 1)[i] = value<float *>(params, 0)[i];
      value<float *>(params, 2)[i] = 1 - value<float *>(params, 0)[i];
    }
  } else if (!strcmp(name, "map_and_score")) {  // (const float *x, float *map, float *score, int n): one picture
    double sum = 0;
    for (int i = 0; i < value<int>(params, 3); i++) {
      value<float *>(params, 1)[i] = value<float *>(params, 0)[i];
      sum += value<float *>(params, 0)[i];
    }
    *value<float *>(params, 2) = static_cast<float>(sum / value<int>(params, 3));
  } else {  // (const float *x, float *mean, int channels, int n): n pixels of one picture
    int n = value<int>(params, 3), channels = value<int>(params, 2);
    for (int i = 0; i < n; i++) {
      float sum = 0;
      for (int c = 0; c < channels; c++) sum += value<float *>(params, 0)[c * n + i];
      value<float *>(params, 1)[i] = sum / static_cast<float>(channels);
    }
  }
  return 0;
}
}
