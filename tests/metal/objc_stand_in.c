/* A library with the three functions of the Objective-C runtime that the product calls, to see that arguments arrive as
   the C ABI has them. Every method notes its selector and what it was given. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct { uint64_t width, height, depth; } Size;
char noted[256];
static char names[64][96];

void *sel_registerName(const char *name) {
  for (int i = 0; i < 64; i++) {
    if (!names[i][0]) strncpy(names[i], name, sizeof names[i] - 1);
    if (!strcmp(names[i], name)) return names[i];
  }
  return 0;
}
void *objc_getClass(const char *name) { return strcmp(name, "NSString") ? 0 : (void *)0x77; }
void *MTLCreateSystemDefaultDevice(void) { return (void *)0x123456789abcdef0; }

static void *library(void *self, char *sel, void *source, void *options, void **error) {
  *error = (void *)0x99;
  snprintf(noted, sizeof noted, "%p %s %p %p", self, sel, source, options);
  return 0;
}
static void *no_copy(void *self, char *sel, void *at, uint64_t length, uint64_t options, void *block) {
  snprintf(noted, sizeof noted, "%p %s %p %lu %lu %d", self, sel, at, length, options, block != 0);
  return (void *)0xfedcba9876543210;
}
static void dispatch(void *self, char *sel, Size a, Size b) {
  snprintf(noted, sizeof noted, "%p %s %lu %lu %lu, %lu %lu %lu", self, sel, a.width, a.height, a.depth, b.width,
           b.height, b.depth);
}
static const char *text(void *self, char *sel) { return "a text"; }
static void set_bool(void *self, char *sel, _Bool on) { snprintf(noted, sizeof noted, "%s %d", sel, on); }
static void set_integer(void *self, char *sel, int64_t mode) { snprintf(noted, sizeof noted, "%s %ld", sel, mode); }
static _Bool responds(void *self, char *sel, char *other) { return !strcmp(other, "setMathMode:"); }
static void *string(void *self, char *sel, const char *given) {
  snprintf(noted, sizeof noted, "%p %s %s", self, sel, given);
  return (void *)0x55;
}

void *find_method(const char *sel) {
  if (!strcmp(sel, "newLibraryWithSource:options:error:")) return library;
  if (!strcmp(sel, "newBufferWithBytesNoCopy:length:options:deallocator:")) return no_copy;
  if (!strcmp(sel, "dispatchThreads:threadsPerThreadgroup:")) return dispatch;
  if (!strcmp(sel, "UTF8String")) return text;
  if (!strcmp(sel, "setFastMathEnabled:")) return set_bool;
  if (!strcmp(sel, "setMathMode:")) return set_integer;
  if (!strcmp(sel, "respondsToSelector:")) return responds;
  return string;
}

/* As the real one: finds the method by the second argument and jumps to it with all arguments in place. */
__asm__(
    ".globl objc_msgSend\n.type objc_msgSend,@function\nobjc_msgSend:\n"
    "push %rdi\npush %rsi\npush %rdx\npush %rcx\npush %r8\npush %r9\nsub $8, %rsp\n"
    "mov %rsi, %rdi\ncall find_method@PLT\nadd $8, %rsp\n"
    "pop %r9\npop %r8\npop %rcx\npop %rdx\npop %rsi\npop %rdi\njmp *%rax\n");
