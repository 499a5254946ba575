// Files of rows: their encoding, delimiter and cells, and how rows are written again.

/** Reads csv (RFC 4180) piece by piece: quoted cells, any line ends; without a delimiter, a cell a line. */
export class CsvReader {
  constructor(delimiter) {
    this.delimiter = delimiter;
    this.rows = [];
    this.row = [];
    this.cell = "";
    this.state = "start"; // of a cell; or in a "plain" or "quoted" one, or at a "quote" that may end it
    this.returned = false; // whether the last letter was a carriage return
  }

  write(text) {
    let from = 0; // what of the cell is not taken yet begins here
    for (let at = 0; at < text.length; at += 1) {
      if (this.state === "quoted") {
        const quote = text.indexOf('"', at);
        if (quote < 0) break;
        this.cell += text.slice(from, quote);
        from = quote + 1;
        at = quote;
        this.state = "quote";
        continue;
      }
      const letter = text[at];
      const ends = letter === "\n" || letter === "\r";
      if (letter === "\n" && this.returned) {
        from = at + 1;
      } else if (ends || letter === this.delimiter) {
        this.row.push(this.cell + text.slice(from, at));
        from = at + 1;
        this.cell = "";
        this.state = "start";
        if (ends) this.endRow();
      } else if (letter === '"' && this.state !== "plain" && this.delimiter) {
        if (this.state === "start") from = at + 1; // of two quotes within quotes, the second belongs to the cell
        this.state = "quoted";
      } else {
        this.state = "plain";
      }
      this.returned = letter === "\r";
    }
    this.cell += text.slice(from);
  }

  endRow() {
    if (this.row.length > 1 || this.row[0] !== "") this.rows.push(this.row);
    this.row = [];
  }

  /** All rows. Throws an Error where a quotation mark is not closed. */
  end() {
    if (this.state === "quoted") throw new Error(`a quotation mark after row ${this.rows.length} is never closed`);
    this.row.push(this.cell);
    this.endRow();
    return this.rows;
  }
}

/** The delimiter that most rows of a sample have equally often; "" where none has most. */
export function likeliestDelimiter(sample) {
  let best = { share: 0.6, width: 1, delimiter: "" };
  for (const delimiter of [",", ";", "\t", "|"]) {
    const reader = new CsvReader(delimiter);
    reader.write(sample);
    const rows = reader.rows.length ? reader.rows : [[...reader.row, reader.cell]];
    const widths = rows.map((row) => row.length);
    const width = widths.slice().sort((a, b) => a - b)[widths.length >> 1];
    const share = widths.filter((each) => each === width).length / widths.length;
    const isBetter = share > best.share || (share === best.share && width > best.width);
    if (width > 1 && isBetter) best = { share, width, delimiter };
  }
  return best.delimiter;
}

/** The text of a file in pieces; UTF-16 by its mark, else UTF-8, and Windows-1252 for what is neither. */
export async function* piecesOf(file, encoding) {
  const reader = file.stream().pipeThrough(new TextDecoderStream(encoding, { fatal: true })).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

export async function encodingOf(file) {
  const [first, second] = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  if (first === 0xff && second === 0xfe) return "utf-16le";
  if (first === 0xfe && second === 0xff) return "utf-16be";
  try {
    for await (const piece of piecesOf(file, "utf-8")) void piece;
    return "utf-8";
  } catch {
    return "windows-1252";
  }
}

/** Whether a spreadsheet would compute a cell instead of showing it. */
export const isFormula = (cell) => /^[=+\-@\t\r]/.test(cell) && Number.isNaN(Number(cell));

/** What writes the cells of a row as a line; `harmless`: with an apostrophe before what would be computed. */
export function lineWriter(delimiter, harmless) {
  const special = new RegExp(`["\\r\\n\\u{${delimiter.codePointAt(0).toString(16)}}]`, "u");
  const written = (cell) => {
    const text = harmless && isFormula(cell) ? `'${cell}` : cell;
    return special.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return (cells) => `${cells.map(written).join(delimiter)}\n`;
}
