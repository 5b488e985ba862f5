// What was found, once per place in the source, and the C interface to launch.py.
#include "emulator.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace msl {
namespace {
// Read by launch.py (struct _Record).
struct Record {
  uint32_t severity, count, line;
  uint32_t thread[3], group[3];
  uint32_t has_thread;
  uint64_t site;
  char file[64];
  char text[256];
};
constexpr uint32_t kMaxRecords = 64;
Record records[kMaxRecords];
uint32_t record_count;

void add(Severity severity, uintptr_t site, const char* file, uint32_t line, const char* format, va_list values) {
  char text[sizeof(Record::text)];
  vsnprintf(text, sizeof text, format, values);
  for (uint32_t i = 0; i < record_count; i++) {
    Record& r = records[i];
    if (r.site == site && r.line == line && r.severity == (uint32_t)severity && strcmp(r.text, text) == 0) {
      r.count++;
      return;
    }
  }
  if (record_count == kMaxRecords) return;  // 64 different ones will do
  Record& r = records[record_count++];
  r = Record{(uint32_t)severity, 1, line, {0}, {0}, current != nullptr, site, {0}, {0}};
  if (current) {
    memcpy(r.thread, current->context.position_in_group, sizeof r.thread);
    memcpy(r.group, current->context.group_position, sizeof r.group);
  }
  snprintf(r.file, sizeof r.file, "%s", file);
  memcpy(r.text, text, sizeof text);
}
}  // namespace

void forget_reports() { record_count = 0; }

void report(Severity severity, uintptr_t site, const char* format, ...) {
  va_list values;
  va_start(values, format);
  add(severity, site, "", 0, format, values);
  va_end(values);
}

void report_at(Severity severity, const char* file, uint32_t line, const char* format, ...) {
  va_list values;
  va_start(values, format);
  add(severity, 0, file, line, format, values);
  va_end(values);
}

}  // namespace msl

using namespace msl;

extern "C" {
void msl_begin(void) {
  forget_memory();
  forget_reports();
  memset(&statistics, 0, sizeof statistics);
}

void msl_run(Entry entry, const uint64_t* arguments, uint32_t argument_count, const uint32_t* grid,
             const uint32_t* group_size, int in_threadgroups, int order, double cpu_seconds) {
  Dispatch d = {entry, {0}, {0}, {0}, in_threadgroups != 0, order};
  if (argument_count > kMaxArguments) abort();
  memcpy(d.arguments, arguments, argument_count * sizeof *arguments);
  memcpy(d.grid, grid, sizeof d.grid);
  memcpy(d.group, group_size, sizeof d.group);
  install_fault_handlers(cpu_seconds);
  run_dispatch(d);
  remove_fault_handlers();
}

void msl_end(void) { forget_memory(); }
uint32_t msl_record_count(void) { return record_count; }
const void* msl_records(void) { return records; }
const void* msl_statistics(void) { return &statistics; }
}
