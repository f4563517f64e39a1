/** ZIP archives of files that are stored as they are. */

const HEADER_BYTES = 30;
const FILE_SIGNATURE = 0x04034b50;

/**
 * The files of an archive by their names. Its headers must say how long they are, as those of jobs do.
 *
 * @param {Blob} archive
 * @returns {Promise<Map<string, Blob>>}
 */
export async function filesOf(archive) {
  const view = new DataView(await archive.arrayBuffer());
  const files = new Map();
  for (let at = 0; at + HEADER_BYTES <= view.byteLength && view.getUint32(at, true) === FILE_SIGNATURE;) {
    const [size, nameSize, extraSize] = [
      view.getUint32(at + 18, true),
      view.getUint16(at + 26, true),
      view.getUint16(at + 28, true),
    ];
    const name = new TextDecoder().decode(new Uint8Array(view.buffer, at + HEADER_BYTES, nameSize));
    const start = at + HEADER_BYTES + nameSize + extraSize;
    files.set(name, archive.slice(start, start + size, "image/png"));
    at = start + size;
  }
  return files;
}
