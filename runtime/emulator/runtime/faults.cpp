// Hardware faults inside a kernel (stack overflow, an access that no hook saw, a trap) and kernels that never end. The
// faulting thread is ended and the dispatch goes on; at the time limit the dispatch ends.
#include "emulator.h"

#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

namespace msl {
namespace {
constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int kTimer = SIGVTALRM;
constexpr size_t kHandlerStackBytes = 64 << 10;

char handler_stack[kHandlerStackBytes] __attribute__((aligned(16)));
stack_t old_stack;
struct sigaction old_faults[sizeof kFaults / sizeof kFaults[0]], old_timer;
int timer_id = -1;  // the kernel's own, not a timer_t of libc: old glibc keeps those functions in librt

// One past the interrupted instruction, as a return address would be.
uintptr_t site_of(void* context) { return (uintptr_t)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] + 1; }

void on_fault(int number, siginfo_t* info, void* context) {
  if (!current) {  // not a kernel's fault: crash as usual, when the instruction is tried again
    remove_fault_handlers();
    return;
  }
  report(Severity::error, site_of(context), "signal %d (%s) at address %p", number, strsignal(number), info->si_addr);
  kill_current_thread();
}

void on_timer(int, siginfo_t*, void* context) {
  report(Severity::error, site_of(context), "time limit reached: a kernel that does not end?");
  stop_dispatch = true;
  if (current) kill_current_thread();
}

// SA_NODEFER and SA_ONSTACK: the handlers leave by switching stacks, never by returning.
void handle(int number, void (*handler)(int, siginfo_t*, void*), struct sigaction* old) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(number, &action, old);
}

void start_timer(double cpu_seconds) {
  struct sigevent event;
  memset(&event, 0, sizeof event);
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = kTimer;
  event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
  if (syscall(SYS_timer_create, CLOCK_THREAD_CPUTIME_ID, &event, &timer_id) != 0) {
    timer_id = -1;
    return;
  }
  struct itimerspec limit;
  memset(&limit, 0, sizeof limit);
  limit.it_value.tv_sec = (time_t)cpu_seconds;
  limit.it_value.tv_nsec = (long)((cpu_seconds - (double)limit.it_value.tv_sec) * 1e9);
  syscall(SYS_timer_settime, timer_id, 0, &limit, nullptr);
}
}  // namespace

void install_fault_handlers(double cpu_seconds) {
  stack_t stack;
  memset(&stack, 0, sizeof stack);
  stack.ss_sp = handler_stack;
  stack.ss_size = kHandlerStackBytes;
  sigaltstack(&stack, &old_stack);
  for (size_t i = 0; i < sizeof kFaults / sizeof kFaults[0]; i++) handle(kFaults[i], on_fault, &old_faults[i]);
  handle(kTimer, on_timer, &old_timer);
  start_timer(cpu_seconds);
}

void remove_fault_handlers() {
  if (timer_id >= 0) syscall(SYS_timer_delete, timer_id);
  timer_id = -1;
  sigaction(kTimer, &old_timer, nullptr);
  for (size_t i = 0; i < sizeof kFaults / sizeof kFaults[0]; i++) sigaction(kFaults[i], &old_faults[i], nullptr);
  sigaltstack(&old_stack, nullptr);
}

}  // namespace msl
