// Emulator of one GPU compute dispatch on the calling CPU thread: what its parts share.
//
//   fibers.cpp      one fiber per GPU thread, the order in which threads run, one threadgroup after another
//   rendezvous.cpp  where threads wait for each other: SIMD-group functions, simdgroup and threadgroup barriers
//   checker.cpp     buffers and threadgroup memory, and the check of every access to them
//   hooks.cpp       what the instrumented kernels call: __tsan_* (not the real TSan) and __ubsan_*
//   faults.cpp      hardware faults and the CPU time limit
//   report.cpp      what was found, and the C interface of all that to launch.py
//
// Freestanding style on purpose (libc only, fixed-size tables): linking needs no C++ standard library.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace msl {

constexpr uint32_t kSimdWidth = 32;
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxSimdgroups = kMaxThreads / kSimdWidth;
constexpr uint32_t kSlotBytes = 16;
constexpr uint32_t kMaxArguments = 96;  // 31 buffers, 31 threadgroup arrays and every built-in fit

// What built-in parameters are read from. The thunks (build.py) see it as an array of uint32 (reflect.BUILTINS).
struct ThreadContext {
  uint32_t position_in_grid[3], position_in_group[3], group_position[3], groups_per_grid[3];
  uint32_t threads_per_group[3], threads_per_grid[3], dispatched_threads_per_group[3];
  uint32_t index_in_group, lane, simdgroup, simd_width, simdgroups_per_group;
};

enum class Space : uint8_t { device = 0, constant = 1, threadgroup = 2 };
enum class State : uint8_t { running, at_simd_exchange, at_simdgroup_barrier, at_threadgroup_barrier, done };

// Barriers order device memory and threadgroup memory separately; epochs count the barriers passed for each.
struct Epochs {
  uint32_t device = 1, threadgroup = 1;
  uint32_t of(Space space) const { return space == Space::threadgroup ? threadgroup : device; }
  void pass_barrier(uint32_t mem_flags);
};

struct Fiber {
  void* stack_pointer;
  char* stack;  // lowest usable address
  ThreadContext context;
  State state;
  uintptr_t site;         // return address of the call that it waits in
  uint32_t flags;         // of that barrier
  bool needs_all_lanes;   // of that exchange
  uint32_t active_lanes;  // who took part in the exchange
  Epochs simd_epochs;
};

using Entry = void (*)(const uint64_t* arguments, const ThreadContext* context);

struct Dispatch {
  Entry entry;
  uint64_t arguments[kMaxArguments];  // by position; addresses of buffers
  uint32_t grid[3], group[3];
  bool in_threadgroups;  // grid counts threadgroups, not threads
  int order;             // 0 forward, 1 reverse, 2.. pseudo-random
};

struct Statistics {
  uint64_t switches, simd_operations, divergent_operations, threadgroup_barriers;
};

// The threadgroup that is running.
struct Group {
  uint32_t index;  // linear, in the grid
  uint32_t threads, simdgroups;
  Epochs epochs;
  bool has_killed_thread;  // a thread was ended after an error: barriers and SIMD operations lack it for that reason
};

extern Fiber fibers[kMaxThreads];
extern Fiber* volatile current;  // the running fiber; null in the scheduler
extern Group group;
extern Statistics statistics;
extern volatile bool stop_dispatch;

// fibers.cpp
void suspend(State state);
[[noreturn]] void kill_current_thread();
bool on_current_stack(uintptr_t address);
bool in_launch_data(uintptr_t address);
void run_dispatch(const Dispatch& dispatch);

// rendezvous.cpp
bool complete_simd_rendezvous(uint32_t simdgroup);
bool complete_threadgroup_barrier();
bool in_exchange_memory(uintptr_t address);

// checker.cpp
enum class Kind : uint8_t { read, write, atomic, atomic_store };
void forget_memory();
void begin_threadgroup_memory();
void check_access(uintptr_t address, size_t bytes, Kind kind, bool aligned, uintptr_t site);

// faults.cpp
void install_fault_handlers(double cpu_seconds);
void remove_fault_handlers();

// report.cpp
enum class Severity : uint32_t { error = 0, warning = 1, divergence = 2 };
void forget_reports();
void report(Severity severity, uintptr_t site, const char* format, ...) __attribute__((format(printf, 3, 4)));
void report_at(Severity severity, const char* file, uint32_t line, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

}  // namespace msl
