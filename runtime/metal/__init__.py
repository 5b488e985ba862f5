"""Running shaders on a Metal device: ctypes on the Objective-C runtime, or the emulated device behind the same messages."""
