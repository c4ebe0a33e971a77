// Figures as people read them: the same words as on the console and in the report.

const missing = (value) => value === null || value === undefined || !Number.isFinite(value);
const grouped = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const precise = (value, digits = 3) => Number(value.toPrecision(digits)).toString();

export function count(value) {
  if (missing(value)) return "–";
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (Math.abs(value) >= (letter === "K" ? 1e4 : 0.9995 * unit)) return precise(value / unit) + letter;
  }
  return grouped(value);
}

export const whole = (value) => (missing(value) ? "–" : grouped(value));

export function rate(value) {
  if (missing(value)) return "–";
  return value >= 100 ? grouped(value) : precise(value);
}

export function size(value) {
  if (missing(value)) return "–";
  for (const [unit, letters] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "KB"]]) {
    if (Math.abs(value) >= 0.9995 * unit) return `${precise(value / unit)} ${letters}`;
  }
  return `${grouped(value)} bytes`;
}

export function seconds(value) {
  if (missing(value)) return "–";
  if (value < 1) return value === 0 ? "0 ms" : value < 0.001 ? `${precise(value * 1e6, 2)} µs` : `${value * 1000 < 10 ? precise(value * 1000, 2) : Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  const all = Math.round(value);
  if (all < 3600) return `${Math.floor(all / 60)} min ${all % 60} s`;
  if (all < 172800) return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
  return `${Math.floor(all / 86400)} days`;
}

/** How long ago, without a figure that changes each second once it is more than a minute. */
export function age(value) {
  if (missing(value)) return "–";
  if (value < 2) return "just now";
  if (value < 60) return `${Math.floor(value)} s ago`;
  if (value < 3600) return `${Math.floor(value / 60)} min ago`;
  return value < 172800 ? `${Math.floor(value / 3600)} h ago` : `${Math.floor(value / 86400)} days ago`;
}

export const percent = (value) => (missing(value) ? "–" : `${(value * 100).toFixed(1)} %`);
export const figure = (value, digits = 4) => (missing(value) ? "–" : value.toFixed(digits));

/** For an axis or a readout: as many digits as it takes, no more. */
export function short(value) {
  if (missing(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  return precise(value, 4);
}

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
export const date = (unix) => new Date(unix * 1000).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false });
