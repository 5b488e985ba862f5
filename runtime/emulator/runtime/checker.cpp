// Every access of a kernel to memory: inside a buffer, aligned, initialised (threadgroup memory), and ordered with the
// accesses of other threads to the same bytes.
//
// Two accesses of different threads to one byte, of which one writes and not both are atomic, race unless
//   - both threads are in one threadgroup, and a threadgroup_barrier with this memory's flag lies between, or
//   - both are in one SIMD-group, and a simdgroup_barrier with this memory's flag lies between.
// Nothing orders two threadgroups of one dispatch.
#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

namespace msl {
namespace {

struct Access {
  uint32_t group;  // linear index + 1; 0: no access yet
  uint32_t thread : 10, group_epoch : 22;
  uint32_t simd_epoch;
};

// The last plain write, two plain reads and two atomic accesses. Two are enough: see remember.
struct Cell {
  Access write, reads[2], atomics[2];
  bool written;
};

struct Region {
  uintptr_t begin, end;
  Space space;
  bool read_only;
  char name[96];
  Cell* cells;  // one per byte; none for read-only memory, where no race is possible
};

struct Mapping {
  void* address;
  size_t bytes;
};

constexpr uint32_t kMaxRegions = 160;
constexpr uint8_t kPoison = 0xA5;
constexpr uintptr_t kGuardBytes = 1ull << 30, kPage = 4096;

Region regions[kMaxRegions];
uint32_t region_count;
Region* last_region;
Mapping mappings[kMaxRegions];
uint32_t mapping_count;
uintptr_t image_begin, image_end;  // the kernels' shared object: its constants may be read

Region* find_region(uintptr_t address) {
  if (last_region && address >= last_region->begin && address < last_region->end) return last_region;
  for (uint32_t i = 0; i < region_count; i++)
    if (address >= regions[i].begin && address < regions[i].end) return last_region = &regions[i];
  return nullptr;
}

bool same_simdgroup(const Access& a, const Access& b) { return a.thread / kSimdWidth == b.thread / kSimdWidth; }

// True when a barrier, or the program order of one thread, puts `earlier` before `now`.
bool ordered(const Access& earlier, const Access& now) {
  if (earlier.group != now.group) return false;
  if (earlier.thread == now.thread || earlier.group_epoch != now.group_epoch) return true;
  return same_simdgroup(earlier, now) && earlier.simd_epoch != now.simd_epoch;
}

bool races(const Access& earlier, const Access& now) { return earlier.group && !ordered(earlier, now); }
bool races(const Access (&earlier)[2], const Access& now) { return races(earlier[0], now) || races(earlier[1], now); }

// Keeps two accesses of one kind such that a later one of another kind which races with any, races with one of these.
// An access ordered before the new one is implied by it. Otherwise two that differ in the threadgroup, or else in the
// SIMD-group, or else in the thread, will do: nothing is ordered after both of them but not after a third.
void remember(Access (&kept)[2], const Access& now) {
  for (Access& a : kept)
    if (ordered(a, now)) a.group = 0;
  for (Access& a : kept)
    if (!a.group) {
      a = now;
      return;
    }
  const bool one_group = kept[0].group == kept[1].group;
  const bool adds_group = one_group && kept[0].group != now.group;
  const bool adds_simdgroup = one_group && same_simdgroup(kept[0], kept[1]) && !same_simdgroup(kept[0], now);
  if (adds_group || adds_simdgroup) kept[1] = now;
}

void report_outside(uintptr_t address, size_t bytes, bool write, uintptr_t site) {
  const Region* near = nullptr;
  uintptr_t distance = ~(uintptr_t)0;
  for (uint32_t i = 0; i < region_count; i++) {
    const uintptr_t d = address < regions[i].begin ? regions[i].begin - address : address - regions[i].end;
    if (d < distance) {
      distance = d;
      near = &regions[i];
    }
  }
  const char* what = write ? "write" : "read";
  if (near && distance < kGuardBytes)
    report(Severity::error, site, "out-of-bounds %s of %zu bytes, %zu bytes %s %s", what, bytes, (size_t)distance,
           address < near->begin ? "before" : "after the end of", near->name);
  else
    report(Severity::error, site, "out-of-bounds %s of %zu bytes, far from any buffer", what, bytes);
}

// Checks for races and uninitialised reads, byte by byte; reports at most one of each per access.
void check_cells(Region& region, uintptr_t address, size_t bytes, Kind kind, uintptr_t site) {
  const Access now = {group.index + 1, current->context.index_in_group, group.epochs.of(region.space),
                      current->simd_epochs.of(region.space)};
  const char* race = nullptr;
  bool uninitialised = false;
  for (Cell *c = region.cells + (address - region.begin), *end = c + bytes; c < end; c++) {
    const bool reads = kind == Kind::read || kind == Kind::atomic;
    if (reads && region.space == Space::threadgroup && !c->written) uninitialised = true;
    if (kind != Kind::read) c->written = true;
    switch (kind) {
      case Kind::read:
        if (races(c->write, now) || races(c->atomics, now)) race = "read after write";
        remember(c->reads, now);
        break;
      case Kind::write:
        if (races(c->write, now) || races(c->atomics, now)) race = "write after write";
        if (races(c->reads, now)) race = "write after read";
        c->write = now;
        break;
      case Kind::atomic:
      case Kind::atomic_store:
        if (races(c->write, now)) race = "atomic access after write";
        if (races(c->reads, now)) race = "atomic access after read";
        remember(c->atomics, now);
        break;
    }
  }
  if (race) report(Severity::error, site, "data race (%s) on %s", race, region.name);
  if (uninitialised) report(Severity::error, site, "read of uninitialised %s", region.name);
}

Region* add_region(uintptr_t address, size_t bytes, Space space, bool read_only, const char* name) {
  if (region_count == kMaxRegions) return nullptr;
  Region& r = regions[region_count++];
  r = Region{address, address + bytes, space, read_only, {0}, nullptr};
  snprintf(r.name, sizeof r.name, "%s", name);
  if (!read_only) r.cells = (Cell*)calloc(bytes, sizeof(Cell));
  return &r;
}
}  // namespace

void forget_memory() {
  for (uint32_t i = 0; i < region_count; i++) free(regions[i].cells);
  for (uint32_t i = 0; i < mapping_count; i++) munmap(mappings[i].address, mappings[i].bytes);
  region_count = mapping_count = 0;
  last_region = nullptr;
  image_begin = image_end = 0;
}

void begin_threadgroup_memory() {
  for (uint32_t i = 0; i < region_count; i++) {
    Region& r = regions[i];
    if (r.space != Space::threadgroup) continue;
    memset((void*)r.begin, kPoison, r.end - r.begin);
    memset(r.cells, 0, (r.end - r.begin) * sizeof(Cell));
  }
}

// An access outside of every buffer ends the thread, before it can do harm.
void check_access(uintptr_t address, size_t bytes, Kind kind, bool aligned, uintptr_t site) {
  const bool write = kind != Kind::read;
  if (!current || on_current_stack(address) || in_exchange_memory(address)) return;
  Region* region = find_region(address);
  if (!region) {
    const bool constants = address >= image_begin && address < image_end;
    if (!write && (constants || in_launch_data(address))) return;
    report_outside(address, bytes, write, site);
    kill_current_thread();
  }
  if (bytes > region->end - address) {
    report(Severity::error, site, "out-of-bounds %s of %zu bytes across the end of %s", write ? "write" : "read",
           bytes, region->name);
    kill_current_thread();
  }
  if (aligned && address % bytes != 0)
    report(Severity::error, site, "misaligned %zu-byte access to %s", bytes, region->name);
  if (write && region->read_only) {
    report(Severity::error, site, "write to read-only %s", region->name);
    kill_current_thread();
  }
  if (region->cells) check_cells(*region, address, bytes, kind, site);
}

}  // namespace msl

using namespace msl;

extern "C" {
// Memory for a buffer between two guard zones; 0 when there is none.
uint64_t msl_map(uint64_t bytes) {
  const size_t inner = (bytes + kPage - 1) / kPage * kPage, all = inner + 2 * kGuardBytes;
  if (mapping_count == kMaxRegions) return 0;
  char* base = (char*)mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return 0;
  mappings[mapping_count++] = {base, all};
  if (inner && mprotect(base + kGuardBytes, inner, PROT_READ | PROT_WRITE) != 0) return 0;
  return (uint64_t)(base + kGuardBytes);
}

// Declares memory that the kernel may use; 0 when there is no room to keep track of it.
int msl_add_region(uint64_t address, uint64_t bytes, int space, int read_only, const char* name) {
  const Region* r = add_region(address, bytes, (Space)space, read_only, name);
  return r && (r->cells || read_only || bytes == 0);
}

void msl_set_image(uint64_t begin, uint64_t end) {
  image_begin = begin;
  image_end = end;
}
}
