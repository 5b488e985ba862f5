"""Every message that the runtime sends to Metal, with its types, and every constant: what is not here is not used.

Type codes are those of Objective-C: `@` object, `#` class, `:` selector, `Q` NSUInteger, `q` NSInteger, `Z` BOOL, `v`
nothing, `^v` pointer, `*` C string, `^@` where an object is put (NSError**), `@?` block. `{MTLSize=QQQ}` goes by value.
tests/metal/test_abi.py compares the table with the metadata of pyobjc-framework-Metal.
"""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """A selector's receiver (a class or protocol), the type it returns, and those of its arguments."""

    owner: str
    returns: str
    arguments: tuple[str, ...] = ()

    @property
    def owned(self) -> bool:
        """Whether the receiver of the result has to release it."""
        return self.returns == "+@"


SIZE = "{MTLSize=QQQ}"

# `+@`: an object that the caller releases (methods named new...); `@`: one that the autorelease pool does.
MESSAGES: dict[str, Message] = {
    # Foundation
    "new": Message("NSObject", "+@"),
    "retain": Message("NSObject", "@"),
    "release": Message("NSObject", "v"),
    "respondsToSelector:": Message("NSObject", "Z", (":",)),
    "drain": Message("NSAutoreleasePool", "v"),
    "stringWithUTF8String:": Message("NSString", "@", ("*",)),
    "UTF8String": Message("NSString", "*"),
    "localizedDescription": Message("NSError", "@"),
    # devices
    "name": Message("MTLDevice", "@"),
    "hasUnifiedMemory": Message("MTLDevice", "Z"),
    "maxBufferLength": Message("MTLDevice", "Q"),
    "recommendedMaxWorkingSetSize": Message("MTLDevice", "Q"),
    "newCommandQueue": Message("MTLDevice", "+@"),
    "newFence": Message("MTLDevice", "+@"),
    "newLibraryWithSource:options:error:": Message("MTLDevice", "+@", ("@", "@", "^@")),
    "newComputePipelineStateWithFunction:error:": Message("MTLDevice", "+@", ("@", "^@")),
    "newBufferWithBytesNoCopy:length:options:deallocator:": Message("MTLDevice", "+@", ("^v", "Q", "Q", "@?")),
    # shaders
    "setLanguageVersion:": Message("MTLCompileOptions", "v", ("Q",)),
    "setMathMode:": Message("MTLCompileOptions", "v", ("q",)),
    "setFastMathEnabled:": Message("MTLCompileOptions", "v", ("Z",)),
    "newFunctionWithName:": Message("MTLLibrary", "+@", ("@",)),
    "maxTotalThreadsPerThreadgroup": Message("MTLComputePipelineState", "Q"),
    "threadExecutionWidth": Message("MTLComputePipelineState", "Q"),
    # commands
    "commandBuffer": Message("MTLCommandQueue", "@"),
    "computeCommandEncoderWithDispatchType:": Message("MTLCommandBuffer", "@", ("Q",)),
    "commit": Message("MTLCommandBuffer", "v"),
    "waitUntilCompleted": Message("MTLCommandBuffer", "v"),
    "status": Message("MTLCommandBuffer", "Q"),
    "error": Message("MTLCommandBuffer", "@"),
    "setComputePipelineState:": Message("MTLComputeCommandEncoder", "v", ("@",)),
    "setBuffer:offset:atIndex:": Message("MTLComputeCommandEncoder", "v", ("@", "Q", "Q")),
    "memoryBarrierWithScope:": Message("MTLComputeCommandEncoder", "v", ("Q",)),
    "dispatchThreads:threadsPerThreadgroup:": Message("MTLComputeCommandEncoder", "v", (SIZE, SIZE)),
    "dispatchThreadgroups:threadsPerThreadgroup:": Message("MTLComputeCommandEncoder", "v", (SIZE, SIZE)),
    "updateFence:": Message("MTLComputeCommandEncoder", "v", ("@",)),
    "waitForFence:": Message("MTLComputeCommandEncoder", "v", ("@",)),
    "endEncoding": Message("MTLComputeCommandEncoder", "v"),
}

CONSTANTS = {
    "MTLResourceStorageModeShared": 0,
    "MTLResourceHazardTrackingModeUntracked": 256,
    "MTLDispatchTypeConcurrent": 1,
    "MTLBarrierScopeBuffers": 1,
    "MTLLanguageVersion3_1": 0x30001,
    "MTLMathModeSafe": 0,
    "MTLCommandBufferStatusCompleted": 4,
    "MTLCommandBufferStatusError": 5,
}

FUNCTIONS = ("MTLCreateSystemDefaultDevice",)

PAGE = 16 << 10
"""Bytes of a page on Apple silicon: memory without copies is lent to Metal in whole pages."""
MOST_BUFFERS = 31
