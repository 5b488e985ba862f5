// Where threads wait for each other. Threads that wait at the same call (same return address) meet. A call is completed
// when every thread concerned waits somewhere or has returned, so a part of a SIMD-group can meet alone: that counts as
// divergence. Barriers must be reached by all.
#include "emulator.h"

#include <string.h>

namespace msl {
namespace {
// Values handed in, and the copy that the lanes read while some of them already hand in the next.
char offered[kMaxSimdgroups][kSimdWidth * kSlotBytes];
char exchanged[kMaxSimdgroups][kSimdWidth * kSlotBytes];

void wait_at(uintptr_t site, uint32_t flags, State state) {
  current->site = site;
  current->flags = flags;
  suspend(state);
}

bool waits_in_simdgroup(const Fiber& f) {
  return f.state == State::at_simd_exchange || f.state == State::at_simdgroup_barrier;
}
}  // namespace

bool in_exchange_memory(uintptr_t address) { return address - (uintptr_t)exchanged < sizeof exchanged; }

bool complete_simd_rendezvous(uint32_t simdgroup) {
  const uint32_t begin = simdgroup * kSimdWidth;
  const uint32_t lanes = group.threads - begin < kSimdWidth ? group.threads - begin : kSimdWidth;
  Fiber* first = nullptr;  // lowest address: threads deeper in the kernel wait until the others have caught up
  for (uint32_t i = 0; i < lanes; i++) {
    Fiber& f = fibers[begin + i];
    if (waits_in_simdgroup(f) && (!first || f.site < first->site)) first = &f;
  }
  if (!first) return false;

  uint32_t active = 0, taking_part = 0;
  for (uint32_t i = 0; i < lanes; i++) {
    const Fiber& f = fibers[begin + i];
    if (f.state != first->state || f.site != first->site) continue;
    active |= 1u << i;
    taking_part++;
  }
  statistics.simd_operations++;
  const bool barrier = first->state == State::at_simdgroup_barrier;
  if (!group.has_killed_thread) {
    if (!barrier && first->needs_all_lanes && taking_part < kSimdWidth) {
      report(Severity::error, first->site, "simdgroup matrix function executed by %u of 32 lanes", taking_part);
    } else if (barrier && taking_part < lanes) {
      report(Severity::error, first->site, "simdgroup_barrier reached by %u of %u threads", taking_part, lanes);
    } else if (taking_part < lanes) {
      statistics.divergent_operations++;
      report(Severity::divergence, first->site, "SIMD-group function executed by %u of %u threads", taking_part, lanes);
    }
  }

  if (!barrier) memcpy(exchanged[simdgroup], offered[simdgroup], sizeof exchanged[simdgroup]);
  for (uint32_t i = 0; i < lanes; i++) {
    if (!(active >> i & 1)) continue;
    Fiber& f = fibers[begin + i];
    f.active_lanes = active;
    f.state = State::running;
    if (barrier) f.simd_epochs.pass_barrier(f.flags);
  }
  return true;
}

bool complete_threadgroup_barrier() {
  Fiber* first = nullptr;
  uint32_t waiting = 0;
  bool one_site = true;
  for (uint32_t i = 0; i < group.threads; i++) {
    Fiber& f = fibers[i];
    if (f.state != State::at_threadgroup_barrier) continue;
    waiting++;
    if (!first) first = &f;
    one_site = one_site && f.site == first->site;
  }
  if (!first) return false;
  if (!group.has_killed_thread) {
    if (waiting < group.threads)
      report(Severity::error, first->site, "threadgroup_barrier reached by %u of %u threads, the others have returned",
             waiting, group.threads);
    if (!one_site)
      report(Severity::error, first->site, "threads of one threadgroup wait at different threadgroup_barrier calls");
  }
  statistics.threadgroup_barriers++;
  group.epochs.pass_barrier(first->flags);
  for (uint32_t i = 0; i < group.threads; i++)
    if (fibers[i].state == State::at_threadgroup_barrier) fibers[i].state = State::running;
  return true;
}

}  // namespace msl

using namespace msl;

// What include/metal_compute and include/metal_simdgroup call.
extern "C" {
void __msl_threadgroup_barrier(unsigned flags) {
  wait_at((uintptr_t)__builtin_return_address(0), flags, State::at_threadgroup_barrier);
}

void __msl_simdgroup_barrier(unsigned flags) {
  wait_at((uintptr_t)__builtin_return_address(0), flags, State::at_simdgroup_barrier);
}

const char* __msl_simd_exchange(const void* value, unsigned size, unsigned all_lanes, unsigned* active) {
  const ThreadContext& c = current->context;
  memcpy(offered[c.simdgroup] + c.lane * kSlotBytes, value, size);
  current->needs_all_lanes = all_lanes;
  wait_at((uintptr_t)__builtin_return_address(0), 0, State::at_simd_exchange);
  *active = current->active_lanes;
  return exchanged[c.simdgroup];
}

unsigned __msl_lane(void) { return current->context.lane; }

void __msl_bad_lane(unsigned lane) {
  if (!group.has_killed_thread)
    report(Severity::error, (uintptr_t)__builtin_return_address(0),
           "SIMD-group function reads lane %u, which does not exist or takes no part", lane);
}
}
