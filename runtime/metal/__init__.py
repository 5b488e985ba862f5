"""Running shaders on a Metal device: messages through the Objective-C runtime, or to an emulated device."""
