"""The words of plans and frames: what native code knows of the calls of an entry (`plans.py` writes them), and what
belongs to one call. `dispatch.py` has an example.
"""

from __future__ import annotations

# Nodes of the streams. A node begins with its kind; children follow their container.
ARRAY = 0  # shape, dtype: an array of exactly these
STATE_ARRAY = 1  # shape, dtype: the value of the random state
CONSTANT = 2  # its type, object: an equal constant
NUMBER = 3  # its type: an int or float that is an input
IGNORED = 4  # its type: a leaf of captured state that is no array
DICT = 5  # its type (for a result: a dict with these keys), n: each child behind its key
LIST = 6  # its type, n
TUPLE = 7  # its type, n
NEW = 8  # j: an array of result j of the program, or any array where captured outputs are looked at
GIVEN = 9  # i: the same of array i of the call
OUTSIDE = 10  # value: the same of a value from outside
MAKE = 11  # callable, n: what the callable makes of a list of the children
RANDOM = 12  # the random state among captured outputs; NEW, GIVEN or OUTSIDE follows
FLOAT = 13  # its bits: a float that is the same, NaN and the sign of zero included
OBJECT = 14  # its type, what takes it apart, its auxiliary data, n: of a registered class
UPDATED = 15  # shape, dtype, c: an array of captured state, whose memory the result of copy c may take

# Words of a plan.
NODES = 0  # where the stream of arguments, values of keywords and captured inputs begins
RESULT = 1  # and that of the result
WRITTEN = 2  # and that of captured outputs, 0 if there are none
INPUTS = 3  # the tree of captured inputs, or 0
OUTPUTS = 4  # the tree of captured outputs, or 0
CHECKED = 5  # whether the outputs are the inputs, and need no look of their own
FRAME = 6  # words of a frame
OWNED = 7  # and of those that hold references, from OWNED_FIRST on
ARRAYS = 8  # arrays of a call
FEED = 9  # what makes buffers of the numbers that are inputs, or 0
EXTRA = 10  # where the stream of captured parameters begins
EXTRAS = 11  # their number
BLOCKS = 12  # where blocks for results are listed: (free list, size class, the same as a word, begins as a copy) each
BLOCK_COUNT = 13
BUFFERS = 14  # results of the program's kernels
ENTRIES = 15  # where, for each output of the program, its entry in the table is
OUTPUT_COUNT = 16
RUN = 17  # the launcher's function, or 0 where nothing is launched
PROGRAM = 18  # its list of launches
THREADS = 19  # threads of the kernels, or 0: as many as the knob says
ARENA = 20  # the list of free arenas, or 0
ARENA_SIZE = 21  # its size class, an int object
LONG = 22  # whether others should run meanwhile
HITS = 23  # the address of a counter
WALK = 24  # of an evaluation: where the pairs (node, input) lie that lead to further nodes
WALKED = 25  # their number
LEAVES = 26  # and where those that lead to the arguments do
MEMBERS = 27  # where results of kernels are listed: (block, offset, the same as an int object) each
HOLDS = 28  # whether values of the call are among its results
OUTPUTS_AT = 29  # where outputs of the program are listed: (shape, dtype) each
POSITIONAL = 30  # arguments
NAMES = 31  # names of keywords, a tuple, or 0
COPIES = 32  # where the launches are listed that copy a parameter to a result: (parameter, result, block, its list)
COPY_COUNT = 33
KEPT = 34  # where in the frame the arrays are that copies are made of
TURN = 35  # what stands for memory that is written over, if arrays of the call may be: a `graph.Turn`; or 0
TURN_ENTER = 36  # what takes its lock
TURN_LEAVE = 37  # and what gives it back
JOINS = 38  # the address of a counter of calls whose arguments were graphs never seen before; 0 if they do not count
HEADER = 39
BLOCK = 4  # words of a block
COPY = 4  # words of a copy
MEMBER = 3  # words of a result of kernels

JOINED_AFTER = 8  # such calls in a row, from which on they become part of the lazy graph, which Python does

# Words of a frame: two counters, the block that was met last and where it begins, single references; then, by the plan:
# for each array the owner of its memory and, if the plan says so, its value; the owners of the blocks for results; the
# values of results; the arrays that may be written over. The table of addresses is behind what is owned.
CURSOR = 0
COUNT = 1
LAST_HOLDER = 2
LAST_START = 3
GRAPH = 4  # of an evaluation: the list of what is wanted
OWNED_FIRST = 5
NUMBERS = 5
FED = 6
LATE = 7  # a list of the values that have no data yet
LISTS = 8
