// CUDA C++ on the host: what runtime/kernels/*.cu use of it, so that the same source runs on a CPU under g++ and its
// sanitizers. Forced into every .cu by build.py; README.md says what the library then exports.
//
// One OS thread runs a launch, block after block. The threads of a block are fibers: one runs until it waits at a
// barrier, then the next. A kernel without barriers never leaves its first fiber. Threads run in rising order or, asked
// for by host_reverse(1), in falling order, blocks too: a kernel that lacks a barrier, or reads shared memory that it
// has not written, gives another result then.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads() host_cuda::wait_for_block(__LINE__)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Where the running thread is. Not const: the scheduler writes them at every switch.
static dim3 gridDim, blockDim, blockIdx, threadIdx;

// Push what a callee must keep, leave the stack pointer at *save, and go on with the stack of ``to``. The contexts of
// <ucontext.h> would ask the system to change signal masks at every switch, which takes most of a test's time.
extern "C" void host_cuda_switch(void **save, void *to) __attribute__((visibility("hidden")));
#if defined(__x86_64__)
asm(R"(
.text
.hidden host_cuda_switch
.globl host_cuda_switch
.type host_cuda_switch, @function
host_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int FRAME = 8;   // words of a suspended stack: registers, where to return to, and a caller that is not there
constexpr int RETURN = 6;  // the word that says where to
#elif defined(__aarch64__)
asm(R"(
.text
.hidden host_cuda_switch
.globl host_cuda_switch
.type host_cuda_switch, %function
host_cuda_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
)");
constexpr int FRAME = 20;
constexpr int RETURN = 1;
#else
#error "fibers are written for x86-64 and 64-bit Arm"
#endif

namespace host_cuda {

constexpr size_t STACK = 256 << 10;  // bytes of a thread's stack
constexpr unsigned WARP = 32;

enum class State { ready, at_block_barrier, at_warp_barrier, finished };

struct Fiber {
  std::unique_ptr<char[]> stack{new char[STACK]};
  void *stack_pointer = nullptr;
  State state = State::finished;
  unsigned thread = 0;  // of the block, x fastest
  int line = 0;         // of the barrier it waits at
  void *sanitizer = nullptr;
};

struct Block {
  void (*body)(void **) = nullptr;
  void **arguments = nullptr;
  unsigned threads = 0;
  unsigned started = 0;
  bool reverse = false;
  void *scheduler = nullptr;  // its stack pointer while a fiber runs
  void *scheduler_sanitizer = nullptr;
  const void *scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  std::deque<Fiber> fibers;        // grows to the block's size where a kernel has barriers, and is kept
  std::vector<Fiber *> of_thread;  // the fiber that runs a thread, null before its start
  Fiber *running = nullptr;
  uint64_t exchange[1024];  // what the threads of a warp show each other
};
static Block block;

// Hand control to another stack; address sanitizer has to know which is in use.
inline void leave(void **from, void *to, void **fake, const void *stack, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, stack, size);
#endif
  host_cuda_switch(from, to);
  (void)fake, (void)stack, (void)size;
}
inline void arrive(void *fake, const void **stack, size_t *size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, stack, size);
#endif
  (void)fake, (void)stack, (void)size;
}

inline void place(unsigned thread) {
  threadIdx.x = thread % blockDim.x;
  threadIdx.y = thread / blockDim.x % blockDim.y;
  threadIdx.z = thread / (blockDim.x * blockDim.y);
}

inline void suspend(Fiber &fiber) {
  leave(&fiber.stack_pointer, block.scheduler, &fiber.sanitizer, block.scheduler_stack, block.scheduler_stack_size);
  arrive(fiber.sanitizer, nullptr, nullptr);
}

// A fiber takes threads that nobody has started, one after the other, until one of them waits.
inline void run_threads() {
  arrive(nullptr, &block.scheduler_stack, &block.scheduler_stack_size);
  for (;;) {
    Fiber &fiber = *block.running;
    while (block.started < block.threads) {
      unsigned thread = block.reverse ? block.threads - 1 - block.started : block.started;
      block.started++;
      block.of_thread[thread] = &fiber;
      fiber.thread = thread;
      fiber.state = State::ready;
      place(thread);
      block.body(block.arguments);
      fiber.state = State::finished;
      block.of_thread[thread] = nullptr;
    }
    suspend(fiber);
  }
}

inline void resume(Fiber &fiber) {
  block.running = &fiber;
  if (fiber.state != State::finished) place(fiber.thread);
  leave(&block.scheduler, fiber.stack_pointer, &block.scheduler_sanitizer, fiber.stack.get(), STACK);
  arrive(block.scheduler_sanitizer, nullptr, nullptr);
}

inline Fiber &idle_fiber() {
  for (Fiber &fiber : block.fibers)
    if (fiber.state == State::finished) return fiber;
  Fiber &fiber = block.fibers.emplace_back();
  // As if run_threads had been switched away from at its very beginning.
  auto end = reinterpret_cast<uintptr_t>(fiber.stack.get() + STACK) / 16 * 16;
  auto words = reinterpret_cast<uintptr_t *>(end) - FRAME;
  for (int i = 0; i < FRAME; i++) words[i] = 0;
  words[RETURN] = reinterpret_cast<uintptr_t>(&run_threads);
  fiber.stack_pointer = words;
  return fiber;
}

inline void wait_for_block(int line) {
  Fiber &fiber = *block.running;
  fiber.state = State::at_block_barrier;
  fiber.line = line;
  suspend(fiber);
}

inline void wait_for_warp() {
  Fiber &fiber = *block.running;
  fiber.state = State::at_warp_barrier;
  suspend(fiber);
}

// Let go of every warp whose threads all wait for each other; whether there was one.
inline bool release_warps() {
  bool released = false;
  for (unsigned first = 0; first < block.threads; first += WARP) {
    unsigned end = first + WARP < block.threads ? first + WARP : block.threads;
    bool complete = false;
    for (unsigned thread = first; thread < end; thread++) {
      Fiber *fiber = block.of_thread[thread];
      if (!fiber) continue;
      complete = fiber->state == State::at_warp_barrier;
      if (!complete) break;
    }
    if (!complete) continue;
    released = true;
    for (unsigned thread = first; thread < end; thread++)
      if (block.of_thread[thread]) block.of_thread[thread]->state = State::ready;
  }
  return released;
}

// Run one block to its end. False where its threads wait for each other in vain, or at different barriers.
inline bool run_block() {
  block.started = 0;
  block.of_thread.assign(block.threads, nullptr);
  while (block.started < block.threads) resume(idle_fiber());
  for (;;) {
    bool waiting = false, all_at_block = true, one_line = true;
    int line = 0;
    for (Fiber *fiber : block.of_thread) {
      if (!fiber) continue;
      all_at_block = all_at_block && fiber->state == State::at_block_barrier;
      one_line = one_line && (!waiting || fiber->line == line);
      line = fiber->line;
      waiting = true;
    }
    if (!waiting) return true;
    if (all_at_block) {
      if (!one_line) return false;
      for (Fiber *fiber : block.of_thread)
        if (fiber) fiber->state = State::ready;
    } else if (!release_warps()) {
      return false;
    }
    for (unsigned i = 0; i < block.threads; i++) {
      Fiber *fiber = block.of_thread[block.reverse ? block.threads - 1 - i : i];
      if (fiber && fiber->state == State::ready) resume(*fiber);
    }
  }
}

inline unsigned thread_index() { return block.running->thread; }

// The value that another lane of the warp shows; every thread of the warp calls this.
template <class T>
T exchanged(T value, unsigned lane) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  unsigned first = thread_index() / WARP * WARP;
  memcpy(&block.exchange[thread_index()], &value, sizeof(T));
  wait_for_warp();
  if (lane < WARP && first + lane < block.threads) memcpy(&value, &block.exchange[first + lane], sizeof(T));
  wait_for_warp();
  return value;
}

struct Kernel {
  const char *name;
  std::vector<int> sizes;
  void (*body)(void **);
};

template <auto kernel, class... Arguments, size_t... index>
void call(void **arguments, std::tuple<Arguments...> *, std::index_sequence<index...>) {
  kernel(*static_cast<Arguments *>(arguments[index])...);
}
template <class... Arguments>
std::tuple<Arguments...> *arguments_of(void (*)(Arguments...));
template <class... Arguments>
std::vector<int> sizes_of(void (*)(Arguments...)) {
  return {static_cast<int>(sizeof(Arguments))...};
}

template <auto kernel>
Kernel make_kernel(const char *name) {
  return {name, sizes_of(kernel), [](void **arguments) {
            using Tuple = std::remove_pointer_t<decltype(arguments_of(kernel))>;
            call<kernel>(arguments, static_cast<Tuple *>(nullptr),
                         std::make_index_sequence<std::tuple_size_v<Tuple>>{});
          }};
}

inline bool launch(const Kernel &kernel, const unsigned *grid, const unsigned *shape, void **arguments) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {shape[0], shape[1], shape[2]};
  block.body = kernel.body;
  block.arguments = arguments;
  block.threads = shape[0] * shape[1] * shape[2];
  uint64_t blocks = uint64_t{grid[0]} * grid[1] * grid[2];
  for (uint64_t i = 0; i < blocks; i++) {
    uint64_t index = block.reverse ? blocks - 1 - i : i;
    blockIdx.x = static_cast<unsigned>(index % grid[0]);
    blockIdx.y = static_cast<unsigned>(index / grid[0] % grid[1]);
    blockIdx.z = static_cast<unsigned>(index / grid[0] / grid[1]);
    if (!run_block()) {
      fprintf(stderr, "%s: the threads of a block wait at different barriers\n", kernel.name);
      block.fibers.clear();
      return false;
    }
  }
  return true;
}

}  // namespace host_cuda

// For masks of the whole warp.
template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  return host_cuda::exchanged(value, (host_cuda::thread_index() % host_cuda::WARP) ^ mask);
}

inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
// Operations that a GPU's compiler must not join with the next one.
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
