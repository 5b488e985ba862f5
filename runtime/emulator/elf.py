"""What the verifier needs from a linked kernel library: symbols and the line of an address.

Reads little-endian ELF64 and DWARF 4 line tables (DWARF Debugging Information Format 4, section 6.2), no more.
"""

from __future__ import annotations

import bisect
import struct
from pathlib import Path
from typing import NamedTuple

_PT_LOAD = 1


class Symbol(NamedTuple):
    """Address (relative to where the library is loaded) and size in bytes."""

    address: int
    size: int


class _Reader:
    """A cursor over bytes."""

    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def take(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def uleb(self) -> int:
        value = shift = 0
        while True:
            byte = self.take("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def sleb(self) -> int:
        begin = self.at
        value = self.uleb()
        bits = 7 * (self.at - begin)
        return value - (1 << bits) if value >> (bits - 1) else value

    def string(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text


def _sections(data: bytes) -> dict[str, bytes]:
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    name_table = data[headers[names][4] : headers[names][4] + headers[names][5]]
    sht_nobits = 8
    return {
        _Reader(name_table, h[0]).string(): data[h[4] : h[4] + h[5]] if h[1] != sht_nobits else b"" for h in headers
    }


def _symbols(sections: dict[str, bytes]) -> dict[str, Symbol]:
    names = sections[".strtab"]
    return {
        _Reader(names, name).string(): Symbol(value, size)
        for name, _, _, _, value, size in struct.iter_unpack("<IBBHQQ", sections[".symtab"])
    }


def _image_size(data: bytes) -> int:
    """Bytes from the load address to the end of the last loaded segment."""
    (offset,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    headers = [struct.unpack_from("<IIQQQQQ", data, offset + i * size) for i in range(count)]
    return max(h[3] + h[6] for h in headers if h[0] == _PT_LOAD)


def _line_unit(reader: _Reader, end: int) -> list[tuple[int, str, int]]:
    """The rows (address, file, line) of one unit's line program; `reader` stands behind the unit's length."""
    version = reader.take("H")
    if version != 4:
        raise ValueError(f"line table of DWARF version {version}, expected 4")
    header_length = reader.take("I")
    program = reader.at + header_length
    min_length, _, _, line_base, line_range, opcode_base = (reader.take(c) for c in "BBBbBB")
    operands = [reader.take("B") for _ in range(opcode_base - 1)]
    while reader.string():  # include directories
        pass
    files = [""]
    while name := reader.string():
        files.append(name)
        for _ in range(3):
            reader.uleb()

    rows: list[tuple[int, str, int]] = []
    reader.at = program
    address, file, line = 0, 1, 1
    while reader.at < end:
        opcode = reader.take("B")
        if opcode >= opcode_base:  # special opcode
            step = opcode - opcode_base
            address += step // line_range * min_length
            line += line_base + step % line_range
            rows.append((address, files[file], line))
        elif opcode == 0:  # extended opcode
            length = reader.uleb()
            next_at = reader.at + length
            extended = reader.take("B")
            if extended == 1:  # end_sequence
                rows.append((address, "", 0))
                address, file, line = 0, 1, 1
            elif extended == 2:  # set_address
                address = reader.take("Q")
            reader.at = next_at
        elif opcode == 1:  # copy
            rows.append((address, files[file], line))
        elif opcode == 2:  # advance_pc
            address += reader.uleb() * min_length
        elif opcode == 3:  # advance_line
            line += reader.sleb()
        elif opcode == 4:  # set_file
            file = reader.uleb()
        elif opcode == 8:  # const_add_pc
            address += (255 - opcode_base) // line_range * min_length
        elif opcode == 9:  # fixed_advance_pc
            address += reader.take("H")
        else:
            for _ in range(operands[opcode - 1]):
                reader.uleb()
    return rows


class Library:
    """Symbols, image size and line table of the shared object at `path`."""

    def __init__(self, path: Path):
        data = path.read_bytes()
        sections = _sections(data)
        self.symbols = _symbols(sections)
        self.image_size = _image_size(data)
        rows: list[tuple[int, str, int]] = []
        reader = _Reader(sections.get(".debug_line", b""))
        while reader.at < len(reader.data):
            length = reader.take("I")
            end = reader.at + length
            rows += _line_unit(reader, end)
            reader.at = end
        rows.sort(key=lambda row: row[0])
        self._rows = rows
        self._addresses = [row[0] for row in rows]

    def line(self, address: int) -> tuple[str, int]:
        """File and line of the instruction at `address` (relative); ("", 0) when unknown."""
        i = bisect.bisect_right(self._addresses, address) - 1
        return self._rows[i][1:] if i >= 0 else ("", 0)
