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

constexpr uint16_t kSeveralThreads = 0xffff;

struct Access {
  uint32_t group;  // linear index + 1; 0: no access yet
  uint16_t thread;
  bool atomic;
  uint32_t group_epoch, simd_epoch;
};

// The last write and two readers. Two are enough: see remember_read.
struct Cell {
  Access write, reads[2];
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

bool writes(Kind kind) { return kind == Kind::write || kind == Kind::atomic_write; }
bool is_atomic(Kind kind) { return kind == Kind::atomic_read || kind == Kind::atomic_write; }

bool same_simdgroup(const Access& a, const Access& b) {
  return a.thread != kSeveralThreads && a.thread / kSimdWidth == b.thread / kSimdWidth;
}

// True when a barrier, or the program order of one thread, puts `earlier` before `now`.
bool ordered(const Access& earlier, const Access& now) {
  if (earlier.group != now.group) return false;
  if (earlier.thread == now.thread || earlier.group_epoch != now.group_epoch) return true;
  return same_simdgroup(earlier, now) && earlier.simd_epoch != now.simd_epoch;
}

bool conflict(const Access& earlier, const Access& now) {
  return earlier.group && !(earlier.atomic && now.atomic) && !ordered(earlier, now);
}

// Keeps two readers such that a later write which races with any reader races with one of these. A reader ordered before
// the new one is implied by it. Otherwise readers of two threadgroups, or of two SIMD-groups of one threadgroup, or two
// threads of one SIMD-group do: no writer is ordered after both but not after a third.
void remember_read(Cell& cell, const Access& now) {
  for (Access& r : cell.reads)
    if (!r.group || ordered(r, now)) {
      r = now;
      return;
    }
  Access &a = cell.reads[0], &b = cell.reads[1];
  const bool both_in_other_group = a.group == b.group && a.group != now.group;
  const bool both_in_other_simdgroup =
      a.group == b.group && same_simdgroup(a, b) && a.group == now.group && !same_simdgroup(a, now);
  if (both_in_other_group || both_in_other_simdgroup) b = now;
}

void remember_write(Cell& cell, Access now) {
  const Access& w = cell.write;
  if (w.group && w.atomic && now.atomic && !ordered(w, now)) now.thread = kSeveralThreads;
  cell.write = now;
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

void report_race(const Region& region, const char* what, uintptr_t site) {
  report(Severity::error, site, "data race (%s) on %s", what, region.name);
}

// Checks for races and uninitialised reads, byte by byte; reports at most one per access.
void check_cells(Region& region, uintptr_t address, size_t bytes, Kind kind, uintptr_t site) {
  const bool write = writes(kind);
  const Access now = {group.index + 1, (uint16_t)current->context.index_in_group, is_atomic(kind),
                      group.epochs.of(region.space), current->simd_epochs.of(region.space)};
  const char* race = nullptr;
  bool uninitialised = false;
  for (Cell *c = region.cells + (address - region.begin), *end = c + bytes; c < end; c++) {
    if (conflict(c->write, now)) race = write ? "write after write" : "read after write";
    if (write && (conflict(c->reads[0], now) || conflict(c->reads[1], now))) race = "write after read";
    if (!write && region.space == Space::threadgroup && !c->write.group) uninitialised = true;
    if (write)
      remember_write(*c, now);
    else
      remember_read(*c, now);
  }
  if (race) report_race(region, race, site);
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
  if (!current || on_current_stack(address) || in_exchange_memory(address)) return;
  Region* region = find_region(address);
  if (!region) {
    if (!writes(kind) && address >= image_begin && address < image_end) return;
    report_outside(address, bytes, writes(kind), site);
    kill_current_thread();
  }
  if (bytes > region->end - address) {
    report(Severity::error, site, "out-of-bounds %s of %zu bytes across the end of %s", writes(kind) ? "write" : "read",
           bytes, region->name);
    kill_current_thread();
  }
  if (aligned && address % bytes != 0)
    report(Severity::error, site, "misaligned %zu-byte access to %s", bytes, region->name);
  if (writes(kind) && region->read_only) {
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
