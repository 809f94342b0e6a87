// A stand-in for NVIDIA's libcuda.so.1 whose device is the host: a test double, never shipped, never called a GPU.
//
// Unmodified pycuda links against the names below. Device memory is host memory, so kernels compiled for the host read
// and write it directly; a module's image is the path of such a host-compiled library. What this driver keeps of a real
// one is what makes programs wrong: work on a stream runs when somebody waits for it and not before, a copy from pageable
// memory reads it at the call and one from page-locked memory when it runs, a stream that is being captured refuses what
// CUDA refuses, an asynchronous failure makes every later call fail, calls without a current context fail, limits of a
// launch are checked, fresh memory is NaN, and writes beside an allocation are found when it is freed.
//
// It starts without a device, so that a process that has it loaded is a machine without a GPU for everybody until a test
// calls host_driver_enable(1).

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using Address = unsigned long long;

enum Result {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_UNMATCHED = 903,
  CAPTURE_ISOLATION = 905,
};

constexpr size_t GUARD = 256;  // bytes watched on each side of an allocation
constexpr unsigned char GUARD_BYTE = 0xA5;

struct Stream;
using Work = std::function<int()>;             // runs when the stream gets there
using Node = std::function<void(Stream &)>;    // puts work on a stream: now, or at every replay of a graph

struct Graph {
  std::vector<Node> nodes;
};

struct Stream {
  std::deque<Work> queue;
  Graph *capture = nullptr;
  bool capture_broken = false;
};

struct Event {
  uint64_t recorded = 0;  // ticket of the latest record, 0 where there was none
  uint64_t reached = 0;   // ticket of the latest record that ran
  Stream *stream = nullptr;
  Graph *captured_in = nullptr;
  bool timed = true;
  std::chrono::steady_clock::time_point time;
};

// What a host-compiled kernel library exports: see README.md.
struct Module {
  void *library = nullptr;
  int (*has)(const char *) = nullptr;
  int (*params)(const char *, int *, int) = nullptr;
  int (*launch)(const char *, const unsigned *, const unsigned *, unsigned, void **) = nullptr;
};

struct Function {
  Module *module;
  std::string name;
  int dynamic_shared = 49152;
};

struct Context {
  int retained = 0;
};

struct Allocation {
  size_t size;
  bool page_locked;
  bool mapped;
  bool ours;  // false: registered host memory
};

std::recursive_mutex lock;
bool enabled = false, initialised = false, integrated = false;
int broken = SUCCESS;  // an asynchronous failure: every later call returns it
int capability[2] = {8, 7};
int version = 13000;
size_t memory_total = size_t(1) << 30, memory_used = 0;
uint64_t tickets = 0;
Context primary;
Stream null_stream;
std::set<Stream *> streams = {&null_stream};
std::set<Event *> events;
std::set<Module *> modules;
std::set<Function *> functions;
std::set<Graph *> graphs, executables;
std::map<Address, Allocation> allocations;
std::map<std::string, long> counts;
struct Failure {
  int after, result, times;
};
std::map<std::string, Failure> injected;
thread_local std::vector<Context *> current;

int injected_failure(const std::string &name) {
  auto found = injected.find(name);
  if (found == injected.end() || found->second.after-- > 0) return SUCCESS;
  int result = found->second.result;
  if (--found->second.times == 0) injected.erase(found);
  return result;
}

#define ENTER_WITHOUT_CONTEXT                                           \
  std::lock_guard<std::recursive_mutex> guard(lock);                    \
  if (!initialised) return NOT_INITIALIZED;                             \
  if (int failure = injected_failure(__func__)) return failure;         \
  if (broken) return broken;

#define ENTER                                         \
  ENTER_WITHOUT_CONTEXT                               \
  if (current.empty()) return INVALID_CONTEXT;

// One piece of a stream's work. A failure stays: the context is lost, as on a device.
void step(Stream &stream) {
  Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (!broken) broken = work();
}

int drain(Stream &stream) {
  while (!stream.queue.empty()) step(stream);
  return broken;
}

int drain_all() {
  for (Stream *stream : streams) drain(*stream);
  return broken;
}

Stream *stream_of(void *handle) {
  if (!handle) return &null_stream;
  auto *stream = static_cast<Stream *>(handle);
  return streams.count(stream) ? stream : nullptr;
}

// Put work on a stream, or into the graph that the stream is being captured into.
int enqueue(void *handle, Node node) {
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (stream->capture_broken) return CAPTURE_INVALIDATED;
  if (stream->capture)
    stream->capture->nodes.push_back(std::move(node));
  else
    node(*stream);
  return SUCCESS;
}

// What waits for a stream, or allocates, may not be called while a stream is captured; it spoils the capture.
int spoil_captures() {
  bool any = false;
  for (Stream *stream : streams)
    if (stream->capture) any = stream->capture_broken = true;
  return any ? CAPTURE_UNSUPPORTED : SUCCESS;
}

#define REFUSE_IN_CAPTURE \
  if (int refusal = spoil_captures()) return refusal;

std::map<Address, Allocation>::iterator allocation_at(Address address) {
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return allocations.end();
  --next;
  return address < next->first + next->second.size ? next : allocations.end();
}

bool inside(Address address, size_t size) {
  auto found = allocation_at(address);
  return found != allocations.end() && address + size <= found->first + found->second.size;
}

int allocate(Address *out, size_t size, bool page_locked, bool mapped) {
  REFUSE_IN_CAPTURE
  if (size == 0) return INVALID_VALUE;
  if (!page_locked && memory_used + size > memory_total) return OUT_OF_MEMORY;
  void *block = nullptr;
  if (posix_memalign(&block, 512, size + 2 * GUARD + 512)) return OUT_OF_MEMORY;
  auto *start = static_cast<unsigned char *>(block) + 512;
  memset(start - GUARD, GUARD_BYTE, GUARD);
  memset(start, 0xFF, size);
  memset(start + size, GUARD_BYTE, GUARD);
  Address address = reinterpret_cast<Address>(start);
  allocations[address] = {size, page_locked, mapped, true};
  if (!page_locked) memory_used += size;
  counts[page_locked ? "host_allocations" : "allocations"]++;
  *out = address;
  return SUCCESS;
}

int release(Address address, bool page_locked) {
  REFUSE_IN_CAPTURE
  auto found = allocations.find(address);
  if (found == allocations.end() || found->second.page_locked != page_locked || !found->second.ours)
    return INVALID_VALUE;
  drain_all();
  auto *start = reinterpret_cast<unsigned char *>(address);
  size_t size = found->second.size;
  for (size_t i = 0; i < GUARD; i++)
    if (start[-1 - static_cast<long>(i)] != GUARD_BYTE || start[size + i] != GUARD_BYTE) {
      counts["overruns"]++;
      break;
    }
  if (!page_locked) memory_used -= size;
  counts[page_locked ? "host_frees" : "frees"]++;
  allocations.erase(found);
  free(start - 512);
  return broken;
}

// A copy that runs on a stream. Pageable memory is read at the call, as CUDA stages it; and written before it returns.
int copy_on_stream(void *stream, const char *direction, Address to, Address from, size_t size, Address device) {
  if (!inside(device, size)) return INVALID_VALUE;
  bool to_host = std::string(direction) == "dtoh", from_host = std::string(direction) == "htod";
  bool pageable = (to_host && !inside(to, size)) || (from_host && !inside(from, size));
  std::string name = direction;
  auto count = [=] {
    counts["copies_" + name]++;
    counts["bytes_" + name] += static_cast<long>(size);
  };
  if (pageable) {
    counts["pageable_copies"]++;
    Stream *target = stream_of(stream);
    if (!target) return INVALID_HANDLE;
    if (target->capture) return spoil_captures();
    drain(*target);
    count();
    memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), size);
    return broken;
  }
  return enqueue(stream, [=](Stream &target) {
    count();
    target.queue.push_back([=] {
      if (!inside(device, size)) return static_cast<int>(ILLEGAL_ADDRESS);
      memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), size);
      return static_cast<int>(SUCCESS);
    });
  });
}

int copy_now(const char *direction, Address to, Address from, size_t size, Address device) {
  REFUSE_IN_CAPTURE
  if (!inside(device, size)) return INVALID_VALUE;
  drain_all();
  counts[std::string("copies_") + direction]++;
  counts[std::string("bytes_") + direction] += static_cast<long>(size);
  memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), size);
  return broken;
}

int set_on_stream(void *stream, Address to, const void *pattern, size_t width, size_t count) {
  if (!inside(to, width * count)) return INVALID_VALUE;
  std::string bytes(static_cast<const char *>(pattern), width);
  return enqueue(stream, [=](Stream &target) {
    counts["memsets"]++;
    target.queue.push_back([=] {
      for (size_t i = 0; i < count; i++) memcpy(reinterpret_cast<char *>(to) + i * width, bytes.data(), width);
      return static_cast<int>(SUCCESS);
    });
  });
}

// The values of a kernel's parameters, packed as a launch hands them over: each aligned to its own size.
std::vector<std::string> unpacked(const std::vector<int> &sizes, const char *buffer, size_t length) {
  std::vector<std::string> values;
  size_t offset = 0;
  for (int size : sizes) {
    size_t alignment = size >= 8 ? 8 : static_cast<size_t>(size);
    offset = (offset + alignment - 1) / alignment * alignment;
    if (offset + static_cast<size_t>(size) > length) return {};
    values.emplace_back(buffer + offset, static_cast<size_t>(size));
    offset += static_cast<size_t>(size);
  }
  if (offset > length) return {};
  return values;
}

double milliseconds(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

int record(void *handle, void *stream, bool external) {
  auto *event = static_cast<Event *>(handle);
  if (!events.count(event)) return INVALID_HANDLE;
  Stream *target = stream_of(stream);
  if (!target) return INVALID_HANDLE;
  if (external && !target->capture) return INVALID_VALUE;
  if (target->capture && !external) {
    // Inside a capture a plain record only marks a place in the graph.
    event->captured_in = target->capture;
    return SUCCESS;
  }
  return enqueue(stream, [event](Stream &where) {
    uint64_t ticket = ++tickets;
    event->recorded = ticket;
    event->stream = &where;
    event->captured_in = nullptr;
    counts["event_records"]++;
    where.queue.push_back([event, ticket] {
      if (!events.count(event)) return static_cast<int>(SUCCESS);
      event->reached = ticket;
      event->time = std::chrono::steady_clock::now();
      return static_cast<int>(SUCCESS);
    });
  });
}

int load_module(void **out, const char *path) {
  auto module = new Module;
  module->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (module->library) {
    module->has = reinterpret_cast<int (*)(const char *)>(dlsym(module->library, "host_has"));
    module->params = reinterpret_cast<int (*)(const char *, int *, int)>(dlsym(module->library, "host_params"));
    module->launch = reinterpret_cast<int (*)(const char *, const unsigned *, const unsigned *, unsigned, void **)>(
        dlsym(module->library, "host_launch"));
  }
  if (!module->has || !module->params || !module->launch) {
    delete module;
    return INVALID_IMAGE;
  }
  modules.insert(module);
  counts["modules_loaded"]++;
  *out = module;
  return SUCCESS;
}

const char *const MESSAGES[][3] = {
    {"0", "CUDA_SUCCESS", "no error"},
    {"1", "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {"2", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {"3", "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {"100", "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {"101", "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {"200", "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {"201", "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {"209", "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {"222", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {"400", "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {"500", "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {"600", "CUDA_ERROR_NOT_READY", "device not ready"},
    {"700", "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {"719", "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {"801", "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {"803", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {"900", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {"901", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {"903", "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {"905", "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
};

int message(int result, const char **out, int column) {
  for (const auto &row : MESSAGES)
    if (std::to_string(result) == row[0]) {
      *out = row[column];
      return SUCCESS;
    }
  *out = "unknown error";
  return INVALID_VALUE;
}

}  // namespace

extern "C" {

// ---- what tests ask and set -----------------------------------------------------------------------------------------

// From now on there is a device, or none.
void host_driver_enable(int on) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  enabled = on;
}

// A device of this memory (bytes), compute capability and kind; a driver of this CUDA version (13000 is 13.0).
void host_driver_device(size_t bytes, int major, int minor, int is_integrated, int cuda_version) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  memory_total = bytes;
  capability[0] = major;
  capability[1] = minor;
  integrated = is_integrated;
  version = cuda_version;
}

// Heal what failed, forget injected failures and set all counts to zero. Allocations stay.
void host_driver_reset() {
  std::lock_guard<std::recursive_mutex> guard(lock);
  broken = SUCCESS;
  counts.clear();
  injected.clear();
  for (Stream *stream : streams) {
    stream->queue.clear();
    stream->capture = nullptr;
    stream->capture_broken = false;
  }
}

// How often something happened since the reset; what is live now: "live_allocations", "live_host_allocations",
// "live_bytes", "live_streams", "live_events", "live_modules", "live_graphs", "live_executables", "retained".
long host_driver_count(const char *name) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  std::string what = name;
  long device = 0, host = 0;
  for (auto &entry : allocations) (entry.second.page_locked ? host : device)++;
  if (what == "live_allocations") return device;
  if (what == "live_host_allocations") return host;
  if (what == "live_bytes") return static_cast<long>(memory_used);
  if (what == "live_streams") return static_cast<long>(streams.size()) - 1;
  if (what == "live_events") return static_cast<long>(events.size());
  if (what == "live_modules") return static_cast<long>(modules.size());
  if (what == "live_graphs") return static_cast<long>(graphs.size());
  if (what == "live_executables") return static_cast<long>(executables.size());
  if (what == "retained") return primary.retained;
  auto found = counts.find(what);
  return found == counts.end() ? 0 : found->second;
}

// Let so many calls fail with a result, after `after` calls that succeed. `what` is a driver function as it is exported
// ("cuMemAlloc_v2"), "launch NAME" (the launch is refused) or "execute NAME" (the kernel fails when it runs).
void host_driver_fail(const char *what, int after, int result, int times) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  injected[what] = {after, result, times};
}

// ---- the driver's interface -----------------------------------------------------------------------------------------

int cuInit(unsigned) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (int failure = injected_failure(__func__)) return failure;
  if (!enabled) return NO_DEVICE;
  initialised = true;
  return SUCCESS;
}

// Whatever asks through here is no part of these tests: the CUDA runtime of some other library in this process. It gets
// what starts the driver, which has no device for it, and nothing else that works.
int host_driver_refuse() { return enabled ? NOT_SUPPORTED : NO_DEVICE; }

int cuGetProcAddress_v2(const char *name, void **out, int, unsigned long long, int *found) {
  *out = strcmp(name, "cuInit") ? reinterpret_cast<void *>(host_driver_refuse) : reinterpret_cast<void *>(cuInit);
  if (found) *found = 0;
  return SUCCESS;
}

int cuGetProcAddress(const char *name, void **out, int wanted, unsigned long long flags) {
  return cuGetProcAddress_v2(name, out, wanted, flags, nullptr);
}

int cuDriverGetVersion(int *out) {
  *out = version;
  return SUCCESS;
}

int cuGetErrorString(int result, const char **out) { return message(result, out, 2); }
int cuGetErrorName(int result, const char **out) { return message(result, out, 1); }

int cuDeviceGetCount(int *out) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  *out = enabled ? 1 : 0;
  return initialised ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int *out, int ordinal) {
  ENTER_WITHOUT_CONTEXT
  if (ordinal != 0) return INVALID_DEVICE;
  *out = 0;
  return SUCCESS;
}

int cuDeviceGetName(char *out, int length, int) {
  snprintf(out, static_cast<size_t>(length), "Host driver (no GPU)");
  return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *out, int) {
  *out = memory_total;
  return SUCCESS;
}

int cuDeviceComputeCapability(int *major, int *minor, int) {
  *major = capability[0];
  *minor = capability[1];
  return SUCCESS;
}

int cuDeviceGetAttribute(int *out, int attribute, int) {
  ENTER_WITHOUT_CONTEXT
  static const std::map<int, int> values = {
      {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},   {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152},
      {10, 32},  {16, 8},   {19, 1},   {39, 1536}, {41, 1},        {81, 167936}, {97, 101376},
  };
  auto found = values.find(attribute);
  *out = found != values.end() ? found->second : 0;
  if (attribute == 18) *out = integrated;
  if (attribute == 75) *out = capability[0];
  if (attribute == 76) *out = capability[1];
  return SUCCESS;
}

int cuDeviceGetPCIBusId(char *out, int length, int) {
  snprintf(out, static_cast<size_t>(length), "0000:00:00.0");
  return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **out, int) {
  ENTER_WITHOUT_CONTEXT
  primary.retained++;
  *out = &primary;
  return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (primary.retained == 0) return INVALID_CONTEXT;
  primary.retained--;
  return SUCCESS;
}

// pycuda says farewell to a primary context with this one, after making it current.
int cuCtxDetach(void *) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (!current.empty()) current.pop_back();
  return cuDevicePrimaryCtxRelease_v2(0);
}

int cuCtxPushCurrent_v2(void *context) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (context != &primary || primary.retained == 0) return INVALID_CONTEXT;
  current.push_back(&primary);
  return SUCCESS;
}

int cuCtxPopCurrent_v2(void **out) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (current.empty()) return INVALID_CONTEXT;
  if (out) *out = current.back();
  current.pop_back();
  return SUCCESS;
}

int cuCtxGetCurrent(void **out) {
  *out = current.empty() ? nullptr : current.back();
  return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
  if (!current.empty()) current.pop_back();
  if (context) current.push_back(static_cast<Context *>(context));
  return SUCCESS;
}

int cuCtxGetDevice(int *out) {
  ENTER
  *out = 0;
  return SUCCESS;
}

int cuCtxGetApiVersion(void *, unsigned *out) {
  *out = static_cast<unsigned>(version);
  return SUCCESS;
}

int cuCtxSynchronize() {
  ENTER
  REFUSE_IN_CAPTURE
  counts["synchronisations"]++;
  return drain_all();
}

int cuMemGetInfo_v2(size_t *available, size_t *total) {
  ENTER
  *available = memory_total - memory_used;
  *total = memory_total;
  return SUCCESS;
}

int cuMemAlloc_v2(Address *out, size_t size) {
  ENTER
  return allocate(out, size, false, false);
}

int cuMemAllocManaged(Address *out, size_t size, unsigned) {
  ENTER
  return allocate(out, size, false, true);
}

int cuMemFree_v2(Address address) {
  ENTER
  return release(address, false);
}

int cuMemHostAlloc(void **out, size_t size, unsigned flags) {
  ENTER
  Address address = 0;
  int result = allocate(&address, size, true, (flags & 2u) != 0);
  *out = reinterpret_cast<void *>(address);
  return result;
}

int cuMemAllocHost_v2(void **out, size_t size) { return cuMemHostAlloc(out, size, 0); }

int cuMemFreeHost(void *address) {
  ENTER
  return release(reinterpret_cast<Address>(address), true);
}

int cuMemHostGetDevicePointer_v2(Address *out, void *host, unsigned) {
  ENTER
  auto found = allocation_at(reinterpret_cast<Address>(host));
  if (found == allocations.end() || !found->second.mapped) return INVALID_VALUE;
  *out = reinterpret_cast<Address>(host);
  return SUCCESS;
}

int cuMemHostGetFlags(unsigned *out, void *host) {
  ENTER
  auto found = allocation_at(reinterpret_cast<Address>(host));
  if (found == allocations.end()) return INVALID_VALUE;
  *out = found->second.mapped ? 2 : 0;
  return SUCCESS;
}

int cuMemGetAddressRange_v2(Address *base, size_t *size, Address address) {
  ENTER
  auto found = allocation_at(address);
  if (found == allocations.end()) return NOT_FOUND;
  *base = found->first;
  *size = found->second.size;
  return SUCCESS;
}

int cuMemcpyHtoD_v2(Address to, const void *from, size_t size) {
  ENTER
  return copy_now("htod", to, reinterpret_cast<Address>(from), size, to);
}

int cuMemcpyDtoH_v2(void *to, Address from, size_t size) {
  ENTER
  return copy_now("dtoh", reinterpret_cast<Address>(to), from, size, from);
}

int cuMemcpyDtoD_v2(Address to, Address from, size_t size) {
  ENTER
  if (!inside(to, size)) return INVALID_VALUE;
  return copy_now("dtod", to, from, size, from);
}

int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) {
  ENTER
  return copy_on_stream(stream, "htod", to, reinterpret_cast<Address>(from), size, to);
}

int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) {
  ENTER
  return copy_on_stream(stream, "dtoh", reinterpret_cast<Address>(to), from, size, from);
}

int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t size, void *stream) {
  ENTER
  if (!inside(to, size)) return INVALID_VALUE;
  return copy_on_stream(stream, "dtod", to, from, size, from);
}

int cuMemsetD8Async(Address to, unsigned char value, size_t count, void *stream) {
  ENTER
  return set_on_stream(stream, to, &value, 1, count);
}

int cuMemsetD32Async(Address to, unsigned value, size_t count, void *stream) {
  ENTER
  return set_on_stream(stream, to, &value, 4, count);
}

int cuMemsetD8_v2(Address to, unsigned char value, size_t count) {
  ENTER
  if (int result = set_on_stream(nullptr, to, &value, 1, count)) return result;
  return drain_all();
}

int cuMemsetD32_v2(Address to, unsigned value, size_t count) {
  ENTER
  if (int result = set_on_stream(nullptr, to, &value, 4, count)) return result;
  return drain_all();
}

int cuStreamCreate(void **out, unsigned) {
  ENTER
  auto *stream = new Stream;
  streams.insert(stream);
  counts["streams_created"]++;
  *out = stream;
  return SUCCESS;
}

int cuStreamDestroy_v2(void *handle) {
  ENTER
  Stream *stream = stream_of(handle);
  if (!handle || !stream) return INVALID_HANDLE;
  drain(*stream);
  streams.erase(stream);
  delete stream;
  return SUCCESS;
}

int cuStreamSynchronize(void *handle) {
  ENTER
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (stream->capture) return spoil_captures();
  counts["synchronisations"]++;
  return drain(*stream);
}

// Each question lets the stream do one thing more: whoever polls gets there.
int cuStreamQuery(void *handle) {
  ENTER
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (stream->capture) return spoil_captures();
  if (stream->queue.empty()) return SUCCESS;
  step(*stream);
  return broken ? broken : NOT_READY;
}

int cuStreamWaitEvent(void *handle, void *event_handle, unsigned) {
  ENTER
  auto *event = static_cast<Event *>(event_handle);
  Stream *stream = stream_of(handle);
  if (!stream || !events.count(event)) return INVALID_HANDLE;
  if (stream->capture && event->captured_in != stream->capture) {
    stream->capture_broken = true;
    return CAPTURE_ISOLATION;
  }
  if (stream->capture) return SUCCESS;
  if (event->captured_in) return NOT_SUPPORTED;  // a capture over several streams is beyond this driver
  uint64_t ticket = event->recorded;
  if (ticket == 0) return SUCCESS;
  Stream *source = event->stream;
  stream->queue.push_back([=] {
    while (events.count(event) && event->reached < ticket && !source->queue.empty()) step(*source);
    return broken;
  });
  return SUCCESS;
}

int cuEventCreate(void **out, unsigned flags) {
  ENTER
  auto *event = new Event;
  event->timed = !(flags & 2u);
  events.insert(event);
  counts["events_created"]++;
  *out = event;
  return SUCCESS;
}

int cuEventDestroy_v2(void *handle) {
  ENTER
  auto *event = static_cast<Event *>(handle);
  if (!events.count(event)) return INVALID_HANDLE;
  drain_all();
  events.erase(event);
  delete event;
  return SUCCESS;
}

int cuEventRecord(void *event, void *stream) {
  ENTER
  return record(event, stream, false);
}

int cuEventRecordWithFlags(void *event, void *stream, unsigned flags) {
  ENTER
  return record(event, stream, flags & 1u);
}

int cuEventSynchronize(void *handle) {
  ENTER
  auto *event = static_cast<Event *>(handle);
  if (!events.count(event)) return INVALID_HANDLE;
  if (event->captured_in) return spoil_captures();
  counts["synchronisations"]++;
  uint64_t ticket = event->recorded;
  while (event->reached < ticket && !event->stream->queue.empty()) step(*event->stream);
  return broken;
}

int cuEventQuery(void *handle) {
  ENTER
  auto *event = static_cast<Event *>(handle);
  if (!events.count(event)) return INVALID_HANDLE;
  if (event->captured_in) return spoil_captures();
  if (event->reached >= event->recorded) return SUCCESS;
  step(*event->stream);
  return broken ? broken : NOT_READY;
}

int cuEventElapsedTime_v2(float *out, void *from, void *to) {
  ENTER
  auto *start = static_cast<Event *>(from), *end = static_cast<Event *>(to);
  if (!events.count(start) || !events.count(end) || !start->timed || !end->timed) return INVALID_HANDLE;
  if (!start->recorded || !end->recorded) return INVALID_HANDLE;
  if (start->reached < start->recorded || end->reached < end->recorded) return NOT_READY;
  *out = static_cast<float>(milliseconds(start->time, end->time));
  return SUCCESS;
}

int cuEventElapsedTime(float *out, void *from, void *to) { return cuEventElapsedTime_v2(out, from, to); }

int cuModuleLoad(void **out, const char *path) {
  ENTER
  return load_module(out, path);
}

// The image is "host:" and the path of a library of host-compiled kernels.
int cuModuleLoadData(void **out, const void *image) {
  ENTER
  const char *text = static_cast<const char *>(image);
  return strncmp(text, "host:", 5) ? static_cast<int>(INVALID_IMAGE) : load_module(out, text + 5);
}

int cuModuleLoadDataEx(void **out, const void *image, unsigned count, int *options, void **values) {
  ENTER
  // The logs' sizes come back through their option values: 3 and 5 are the information and the error log.
  for (unsigned i = 0; i < count; i++)
    if (options[i] == 4 || options[i] == 6) values[i] = nullptr;
  return cuModuleLoadData(out, image);
}

int cuModuleUnload(void *handle) {
  ENTER
  auto *module = static_cast<Module *>(handle);
  if (!modules.count(module)) return INVALID_HANDLE;
  drain_all();
  for (auto it = functions.begin(); it != functions.end();) {
    if ((*it)->module == module) {
      delete *it;
      it = functions.erase(it);
    } else {
      ++it;
    }
  }
  dlclose(module->library);
  modules.erase(module);
  delete module;
  return SUCCESS;
}

int cuModuleGetFunction(void **out, void *handle, const char *name) {
  ENTER
  auto *module = static_cast<Module *>(handle);
  if (!modules.count(module)) return INVALID_HANDLE;
  if (!module->has(name)) return NOT_FOUND;
  auto *function = new Function{module, name};
  functions.insert(function);
  *out = function;
  return SUCCESS;
}

int cuFuncGetAttribute(int *out, int attribute, void *handle) {
  ENTER
  auto *function = static_cast<Function *>(handle);
  if (!functions.count(function)) return INVALID_HANDLE;
  *out = attribute == 0 ? 1024 : attribute == 4 ? 32 : attribute == 8 ? function->dynamic_shared : 0;
  return SUCCESS;
}

int cuFuncSetAttribute(void *handle, int attribute, int value) {
  ENTER
  auto *function = static_cast<Function *>(handle);
  if (!functions.count(function)) return INVALID_HANDLE;
  if (attribute != 8) return SUCCESS;
  if (value > 101376) return INVALID_VALUE;
  function->dynamic_shared = value;
  return SUCCESS;
}

// pycuda sets it before every launch, and then launches with the block's shape all the same.
int cuFuncSetBlockShape(void *handle, int, int, int) {
  ENTER
  return functions.count(static_cast<Function *>(handle)) ? SUCCESS : INVALID_HANDLE;
}

int cuLaunchKernel(void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **params, void **extra) {
  ENTER
  auto *function = static_cast<Function *>(handle);
  if (!functions.count(function)) return INVALID_HANDLE;
  if (!gx || !gy || !gz || !bx || !by || !bz || gy > 65535 || gz > 65535 || bz > 64) return INVALID_VALUE;
  if (static_cast<unsigned long>(bx) * by * bz > 1024) return INVALID_VALUE;
  if (shared > static_cast<unsigned>(function->dynamic_shared)) return INVALID_VALUE;
  if (int failure = injected_failure("launch " + function->name)) return failure;

  std::vector<int> sizes(64);
  int number = function->module->params(function->name.c_str(), sizes.data(), 64);
  if (number < 0) return NOT_FOUND;
  sizes.resize(static_cast<size_t>(number));
  std::vector<std::string> values;
  if (params) {
    for (int i = 0; i < number; i++)
      values.emplace_back(static_cast<const char *>(params[i]), static_cast<size_t>(sizes[static_cast<size_t>(i)]));
  } else if (extra) {
    const char *buffer = nullptr;
    size_t length = 0;
    for (void **entry = extra; *entry; entry += 2) {
      if (*entry == reinterpret_cast<void *>(1)) buffer = static_cast<const char *>(entry[1]);
      if (*entry == reinterpret_cast<void *>(2)) length = *static_cast<size_t *>(entry[1]);
    }
    values = unpacked(sizes, buffer, length);
  }
  if (values.size() != sizes.size()) return INVALID_VALUE;

  return enqueue(stream, [=](Stream &target) {
    counts["launches"]++;
    counts["launches " + function->name]++;
    target.queue.push_back([=]() -> int {
      if (int failure = injected_failure("execute " + function->name)) return failure;
      std::vector<void *> pointers;
      for (const std::string &value : values) pointers.push_back(const_cast<char *>(value.data()));
      unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
      int status = function->module->launch(function->name.c_str(), grid, block, shared, pointers.data());
      return status == 0 ? SUCCESS : LAUNCH_FAILED;
    });
  });
}

int cuStreamBeginCapture_v2(void *handle, int) {
  ENTER
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (!handle) return CAPTURE_UNSUPPORTED;  // the legacy default stream cannot be captured
  if (stream->capture) return INVALID_VALUE;
  stream->capture = new Graph;
  graphs.insert(stream->capture);
  return SUCCESS;
}

int cuStreamEndCapture(void *handle, void **out) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  Stream *stream = stream_of(handle);
  if (!stream || !stream->capture) return INVALID_VALUE;
  Graph *graph = std::exchange(stream->capture, nullptr);
  bool spoilt = std::exchange(stream->capture_broken, false);
  int failure = injected_failure(__func__);
  if (spoilt || failure) {
    graphs.erase(graph);
    delete graph;
    *out = nullptr;
    return failure ? failure : CAPTURE_INVALIDATED;
  }
  *out = graph;
  return SUCCESS;
}

int cuStreamIsCapturing(void *handle, int *out) {
  ENTER
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  *out = stream->capture_broken ? 2 : stream->capture ? 1 : 0;
  return SUCCESS;
}

int cuGraphInstantiateWithFlags(void **out, void *handle, unsigned long long) {
  ENTER
  auto *graph = static_cast<Graph *>(handle);
  if (!graphs.count(graph)) return INVALID_HANDLE;
  auto *executable = new Graph(*graph);
  executables.insert(executable);
  counts["graphs_instantiated"]++;
  *out = executable;
  return SUCCESS;
}

int cuGraphLaunch(void *handle, void *stream_handle) {
  ENTER
  auto *executable = static_cast<Graph *>(handle);
  Stream *stream = stream_of(stream_handle);
  if (!executables.count(executable) || !stream) return INVALID_HANDLE;
  if (stream->capture) return NOT_SUPPORTED;
  counts["graph_launches"]++;
  for (const Node &node : executable->nodes) node(*stream);
  return SUCCESS;
}

int cuGraphDestroy(void *handle) {
  ENTER
  auto *graph = static_cast<Graph *>(handle);
  if (!graphs.erase(graph)) return INVALID_HANDLE;
  delete graph;
  return SUCCESS;
}

int cuGraphExecDestroy(void *handle) {
  ENTER
  auto *executable = static_cast<Graph *>(handle);
  if (!executables.erase(executable)) return INVALID_HANDLE;
  drain_all();
  delete executable;
  return SUCCESS;
}

int cuProfilerStart() { return SUCCESS; }
int cuProfilerStop() { return SUCCESS; }

// What pycuda links against and adedge never calls.
#define REFUSED(name) \
  int name() { return NOT_SUPPORTED; }
REFUSED(cuArray3DCreate_v2) REFUSED(cuArray3DGetDescriptor_v2) REFUSED(cuArrayCreate_v2) REFUSED(cuArrayDestroy)
REFUSED(cuArrayGetDescriptor_v2) REFUSED(cuCtxAttach) REFUSED(cuCtxCreate_v4)
REFUSED(cuCtxDisablePeerAccess) REFUSED(cuCtxEnablePeerAccess) REFUSED(cuCtxGetCacheConfig) REFUSED(cuCtxGetLimit)
REFUSED(cuCtxGetSharedMemConfig) REFUSED(cuCtxSetCacheConfig) REFUSED(cuCtxSetLimit) REFUSED(cuCtxSetSharedMemConfig)
REFUSED(cuDeviceCanAccessPeer) REFUSED(cuDeviceGetByPCIBusId) REFUSED(cuFuncSetCacheConfig) REFUSED(cuFuncSetSharedSize) REFUSED(cuIpcCloseMemHandle) REFUSED(cuIpcGetEventHandle)
REFUSED(cuIpcGetMemHandle) REFUSED(cuIpcOpenEventHandle) REFUSED(cuIpcOpenMemHandle_v2) REFUSED(cuLaunch)
REFUSED(cuLaunchGrid) REFUSED(cuLaunchGridAsync) REFUSED(cuLinkAddData_v2) REFUSED(cuLinkAddFile_v2)
REFUSED(cuLinkComplete) REFUSED(cuLinkCreate_v2) REFUSED(cuLinkDestroy) REFUSED(cuMemAllocPitch_v2)
REFUSED(cuMemHostRegister_v2) REFUSED(cuMemHostUnregister) REFUSED(cuMemcpy2DAsync_v2) REFUSED(cuMemcpy2DUnaligned_v2)
REFUSED(cuMemcpy2D_v2) REFUSED(cuMemcpy3DAsync_v2) REFUSED(cuMemcpy3DPeer) REFUSED(cuMemcpy3DPeerAsync)
REFUSED(cuMemcpy3D_v2) REFUSED(cuMemcpyAtoA_v2) REFUSED(cuMemcpyAtoD_v2) REFUSED(cuMemcpyAtoH_v2)
REFUSED(cuMemcpyDtoA_v2) REFUSED(cuMemcpyHtoA_v2) REFUSED(cuMemcpyPeer) REFUSED(cuMemcpyPeerAsync)
REFUSED(cuMemsetD16Async) REFUSED(cuMemsetD16_v2) REFUSED(cuMemsetD2D16Async) REFUSED(cuMemsetD2D16_v2)
REFUSED(cuMemsetD2D32Async) REFUSED(cuMemsetD2D32_v2) REFUSED(cuMemsetD2D8Async) REFUSED(cuMemsetD2D8_v2)
REFUSED(cuModuleGetGlobal_v2) REFUSED(cuModuleGetSurfRef) REFUSED(cuModuleGetTexRef) REFUSED(cuParamSetSize)
REFUSED(cuParamSetTexRef) REFUSED(cuParamSetf) REFUSED(cuParamSeti) REFUSED(cuParamSetv) REFUSED(cuProfilerInitialize)
REFUSED(cuStreamAttachMemAsync) REFUSED(cuSurfRefGetArray) REFUSED(cuSurfRefSetArray) REFUSED(cuTexRefCreate)
REFUSED(cuTexRefDestroy) REFUSED(cuTexRefGetAddressMode) REFUSED(cuTexRefGetAddress_v2) REFUSED(cuTexRefGetArray)
REFUSED(cuTexRefGetFilterMode) REFUSED(cuTexRefGetFlags) REFUSED(cuTexRefGetFormat) REFUSED(cuTexRefSetAddress2D_v3)
REFUSED(cuTexRefSetAddressMode) REFUSED(cuTexRefSetAddress_v2) REFUSED(cuTexRefSetArray)
REFUSED(cuTexRefSetFilterMode) REFUSED(cuTexRefSetFlags) REFUSED(cuTexRefSetFormat) 
}  // extern "C"
