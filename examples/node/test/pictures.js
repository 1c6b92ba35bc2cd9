// Pictures without a file or a library: grey squares on black, as uncompressed BMP.

const SIDE = 28;
const HEADER = 54;

/** A BMP of 28 x 28 with a bright square of `size` pixels in one corner. */
export function square(size) {
  const bytes = Buffer.alloc(HEADER + SIDE * SIDE * 3);
  bytes.write('BM');
  bytes.writeUInt32LE(bytes.length, 2);
  bytes.writeUInt32LE(HEADER, 10);
  bytes.writeUInt32LE(40, 14); // bytes of the second part of the header
  bytes.writeInt32LE(SIDE, 18);
  bytes.writeInt32LE(SIDE, 22);
  bytes.writeUInt16LE(1, 26); // planes
  bytes.writeUInt16LE(24, 28); // bits of a pixel
  for (let row = 0; row < size; row += 1) {
    const start = HEADER + row * SIDE * 3; // 84 bytes a row: no padding
    bytes.fill(255, start, start + size * 3);
  }
  return bytes;
}
