// One fiber per GPU thread of a threadgroup. A fiber runs until it waits for others (rendezvous.cpp) or returns; then
// the scheduler picks the next one. Threadgroups run one after another. All is deterministic for a given order.
#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern "C" void msl_switch_stack(void** save, void* to);
asm(R"(
.text
.globl msl_switch_stack
.hidden msl_switch_stack
.type msl_switch_stack,@function
msl_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size msl_switch_stack,.-msl_switch_stack
)");

namespace msl {

Fiber fibers[kMaxThreads];
Fiber* volatile current;
Group group;
Statistics statistics;
volatile bool stop_dispatch;

namespace {
// A large frame reaches far below the stack at once: the guard is wider than any array that a kernel may have.
constexpr size_t kStackBytes = 256 << 10, kStackGuard = 8 << 20;
constexpr size_t kSavedRegisters = 6;

const Dispatch* dispatch_in_progress;
void* scheduler_stack_pointer;
uint32_t random_state;

uint32_t random_below(uint32_t n) {
  random_state = random_state * 1664525u + 1013904223u;
  return (random_state >> 8) % n;
}

// The order in which n things take their turn.
void choose_order(uint32_t* turns, uint32_t n) {
  const int order = dispatch_in_progress->order;
  for (uint32_t i = 0; i < n; i++) turns[i] = order == 1 ? n - 1 - i : i;
  if (order < 2) return;
  for (uint32_t i = n; i > 1; i--) {
    const uint32_t j = random_below(i), t = turns[i - 1];
    turns[i - 1] = turns[j];
    turns[j] = t;
  }
}

void fiber_main() {
  dispatch_in_progress->entry(dispatch_in_progress->arguments, &current->context);
  suspend(State::done);
  abort();
}

void give_stack(Fiber& f) {
  if (!f.stack) {
    void* memory = mmap(nullptr, kStackGuard + kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect((char*)memory + kStackGuard, kStackBytes, PROT_READ | PROT_WRITE) != 0) {
      perror("msl emulator: no memory for a thread's stack");
      abort();
    }
    f.stack = (char*)memory + kStackGuard;
  }
  // The frame that msl_switch_stack returns through; fiber_main must start with rsp = 8 modulo 16.
  void** top = (void**)(f.stack + kStackBytes - 72);
  *top = nullptr;
  *--top = (void*)fiber_main;
  top -= kSavedRegisters;
  memset(top, 0, kSavedRegisters * sizeof(void*));
  f.stack_pointer = top;
}

void resume(Fiber& f) {
  current = &f;
  msl_switch_stack(&scheduler_stack_pointer, f.stack_pointer);
  current = nullptr;
}

// Runs every thread of a SIMD-group until it waits, then completes one rendezvous among them.
bool run_simdgroup(uint32_t simdgroup) {
  const uint32_t begin = simdgroup * kSimdWidth;
  const uint32_t lanes = group.threads - begin < kSimdWidth ? group.threads - begin : kSimdWidth;
  uint32_t turns[kSimdWidth];
  choose_order(turns, lanes);
  bool progress = false;
  for (uint32_t i = 0; i < lanes && !stop_dispatch; i++) {
    Fiber& f = fibers[begin + turns[i]];
    if (f.state != State::running) continue;
    progress = true;
    resume(f);
  }
  return (!stop_dispatch && complete_simd_rendezvous(simdgroup)) || progress;
}

void run_threadgroup() {
  uint32_t turns[kMaxSimdgroups];
  while (!stop_dispatch) {
    bool progress = false;
    choose_order(turns, group.simdgroups);
    for (uint32_t i = 0; i < group.simdgroups; i++) progress |= run_simdgroup(turns[i]);
    if (!progress && !complete_threadgroup_barrier()) return;
  }
}

void begin_threadgroup(const Dispatch& d, uint32_t index, const uint32_t groups[3], const uint32_t threads[3]) {
  const uint32_t position[3] = {index % groups[0], index / groups[0] % groups[1], index / groups[0] / groups[1]};
  uint32_t size[3];
  for (int i = 0; i < 3; i++) {
    const uint32_t left = threads[i] - position[i] * d.group[i];
    size[i] = left < d.group[i] ? left : d.group[i];
  }
  group = Group{};
  group.index = index;
  group.threads = size[0] * size[1] * size[2];
  group.simdgroups = (group.threads + kSimdWidth - 1) / kSimdWidth;
  begin_threadgroup_memory();
  for (uint32_t i = 0; i < group.threads; i++) {
    Fiber& f = fibers[i];
    const uint32_t local[3] = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
    ThreadContext& c = f.context;
    for (int k = 0; k < 3; k++) {
      c.position_in_grid[k] = position[k] * d.group[k] + local[k];
      c.position_in_group[k] = local[k];
      c.group_position[k] = position[k];
      c.groups_per_grid[k] = groups[k];
      c.threads_per_group[k] = size[k];
      c.threads_per_grid[k] = threads[k];
      c.dispatched_threads_per_group[k] = d.group[k];
    }
    c.index_in_group = i;
    c.lane = i % kSimdWidth;
    c.simdgroup = i / kSimdWidth;
    c.simd_width = kSimdWidth;
    c.simdgroups_per_group = group.simdgroups;
    f.state = State::running;
    f.simd_epochs = Epochs{};
    give_stack(f);
  }
}
}  // namespace

void Epochs::pass_barrier(uint32_t mem_flags) {
  if (mem_flags & 1) device++;
  if (mem_flags & 2) threadgroup++;
}

// Back to the scheduler, until the rendezvous that `state` names is complete.
void suspend(State state) {
  Fiber* f = current;
  f->state = state;
  statistics.switches++;
  msl_switch_stack(&f->stack_pointer, scheduler_stack_pointer);
}

// Also called from a signal handler, which it never returns to.
void kill_current_thread() {
  group.has_killed_thread = true;
  suspend(State::done);
  abort();
}

bool on_current_stack(uintptr_t address) {
  const uintptr_t low = (uintptr_t)current->stack;
  return address >= low && address < low + kStackBytes;
}

// What a thunk reads: the arguments, and the thread's context.
bool in_launch_data(uintptr_t address) {
  return address - (uintptr_t)dispatch_in_progress->arguments < sizeof dispatch_in_progress->arguments ||
         address - (uintptr_t)&current->context < sizeof current->context;
}

void run_dispatch(const Dispatch& d) {
  dispatch_in_progress = &d;
  random_state = (uint32_t)d.order * 2654435761u + 12345u;
  stop_dispatch = false;
  uint32_t groups[3], threads[3];
  for (int i = 0; i < 3; i++) {
    groups[i] = d.in_threadgroups ? d.grid[i] : (d.grid[i] + d.group[i] - 1) / d.group[i];
    threads[i] = d.in_threadgroups ? d.grid[i] * d.group[i] : d.grid[i];
  }
  const uint32_t total = groups[0] * groups[1] * groups[2];
  uint32_t* turns = (uint32_t*)malloc(sizeof(uint32_t) * (total ? total : 1));
  choose_order(turns, total);
  for (uint32_t i = 0; i < total && !stop_dispatch; i++) {
    begin_threadgroup(d, turns[i], groups, threads);
    run_threadgroup();
  }
  free(turns);
}

}  // namespace msl
