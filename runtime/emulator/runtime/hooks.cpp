// What clang's instrumentation calls. The names are ThreadSanitizer's and UndefinedBehaviorSanitizer's; the real
// runtimes of both are not linked.
#include "emulator.h"

#include <string.h>

using namespace msl;

#define SITE ((uintptr_t)__builtin_return_address(0))
#define ACCESS(p, n, kind, aligned) check_access((uintptr_t)(p), n, Kind::kind, aligned, SITE)

extern "C" {

// ---- memory
#define ACCESS_HOOKS(n)                                                     \
  void __tsan_read##n(void* p) { ACCESS(p, n, read, true); }                \
  void __tsan_write##n(void* p) { ACCESS(p, n, write, true); }              \
  void __tsan_unaligned_read##n(void* p) { ACCESS(p, n, read, false); }     \
  void __tsan_unaligned_write##n(void* p) { ACCESS(p, n, write, false); }   \
  void __tsan_read_write##n(void* p) {                                      \
    ACCESS(p, n, read, true);                                               \
    ACCESS(p, n, write, true);                                              \
  }                                                                         \
  void __tsan_unaligned_read_write##n(void* p) {                            \
    ACCESS(p, n, read, false);                                              \
    ACCESS(p, n, write, false);                                             \
  }
ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)

void __tsan_init(void) {}

void* __tsan_memcpy(void* to, const void* from, size_t n) {
  if (n) {
    ACCESS(from, n, read, false);
    ACCESS(to, n, write, false);
  }
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  if (n) {
    ACCESS(from, n, read, false);
    ACCESS(to, n, write, false);
  }
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  if (n) ACCESS(to, n, write, false);
  return memset(to, value, n);
}

// All threads run on one CPU thread, so that plain operations are atomic.
#define ATOMIC_HOOKS(bits, T)                                                                  \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {                                     \
    ACCESS(p, bits / 8, atomic, true);                                                         \
    return *p;                                                                                 \
  }                                                                                            \
  void __tsan_atomic##bits##_store(volatile T* p, T value, int) {                              \
    ACCESS(p, bits / 8, atomic_store, true);                                                   \
    *p = value;                                                                                \
  }                                                                                            \
  T __tsan_atomic##bits##_exchange(volatile T* p, T value, int) {                              \
    ACCESS(p, bits / 8, atomic, true);                                                         \
    T old = *p;                                                                                \
    *p = value;                                                                                \
    return old;                                                                                \
  }                                                                                            \
  T __tsan_atomic##bits##_compare_exchange_val(volatile T* p, T expected, T value, int, int) { \
    ACCESS(p, bits / 8, atomic, true);                                                         \
    T old = *p;                                                                                \
    if (old == expected) *p = value;                                                           \
    return old;                                                                                \
  }
ATOMIC_HOOKS(8, uint8_t)
ATOMIC_HOOKS(16, uint16_t)
ATOMIC_HOOKS(32, uint32_t)
ATOMIC_HOOKS(64, uint64_t)

// ---- undefined behaviour; every handler's data begins with the place in the source
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
#define FOUND(severity, text) report_at(Severity::severity, at->file, at->line, text)

#define OVERFLOW_HOOK(name, what) \
  void __ubsan_handle_##name(SourceLocation* at) { FOUND(warning, "signed integer overflow in " what); }
OVERFLOW_HOOK(add_overflow, "an addition")
OVERFLOW_HOOK(sub_overflow, "a subtraction")
OVERFLOW_HOOK(mul_overflow, "a multiplication")
OVERFLOW_HOOK(negate_overflow, "a negation")

void __ubsan_handle_float_cast_overflow(SourceLocation* at) {
  FOUND(error, "undefined behaviour: floating-point value outside of the range of the integer type");
}
void __ubsan_handle_load_invalid_value(SourceLocation* at) {
  FOUND(error, "undefined behaviour: bool that is neither 0 nor 1");
}

// After these the processor would trap, or memory be overwritten: the thread ends.
void __ubsan_handle_divrem_overflow(SourceLocation* at) {
  FOUND(error, "undefined behaviour: integer division by zero, or overflow in a division");
  kill_current_thread();
}
void __ubsan_handle_out_of_bounds(SourceLocation* at) {
  FOUND(error, "array index out of bounds");
  kill_current_thread();
}

// Conversion that clang leaves to the compiler's support library, which a Python process does not always hold.
__bf16 __truncsfbf2(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
  const uint16_t upper = (uint16_t)((value != value ? bits | 0x400000 : rounded) >> 16);
  __bf16 result;
  memcpy(&result, &upper, sizeof result);
  return result;
}
}
