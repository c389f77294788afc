// Numbers as people read them. Shared by reports (here) and the terminal (cli/term/format.ts adds to it).

/** 950, 12.3K, 5.8M, 1.2B, 3.4T: three significant digits at least. */
export function formatCount(value: number): string {
  return scaled(value, 1000, ['', 'K', 'M', 'B', 'T', 'P', 'E']);
}

/** 812 B, 1.2 GiB. */
export function formatBytes(bytes: number): string {
  return scaled(bytes, 1024, [' B', ' KiB', ' MiB', ' GiB', ' TiB', ' PiB']);
}

/** 1,234,567 */
export function formatInteger(value: number): string {
  return Number.isFinite(value) ? Math.round(value).toLocaleString('en-US') : String(value);
}

/** 850ms, 4.2s, 1m 32s, 2h 05m, 3d 04h: two units at most. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  if (seconds < 0.9995) return `${Math.max(0, Math.round(seconds * 1000))}ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)}s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}s`;
  const two = (value: number) => String(value).padStart(2, '0');
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)}h ${two(minutes % 60)}m`;
  const hours = Math.round(seconds / 3600);
  return `${Math.floor(hours / 24)}d ${two(hours % 24)}h`;
}

/** 0.412 -> 41.2%; null (unknown) -> '-'. */
export function formatPercent(fraction: number | null | undefined): string {
  return typeof fraction === 'number' && Number.isFinite(fraction) ? `${(fraction * 100).toFixed(1)}%` : '-';
}

/** Losses, bits a byte: four decimals, or as many as keep large ones short. */
export function formatLoss(value: number | null | undefined): string {
  if (typeof value !== 'number' || !Number.isFinite(value)) return value === null ? 'nan' : String(value ?? '-');
  return Math.abs(value) < 100 ? value.toFixed(4) : value.toPrecision(6);
}

/** Learning rates: 3.00e-4. */
export function formatRate(value: number): string {
  return value === 0 ? '0' : value.toExponential(2);
}

function scaled(value: number, base: number, units: readonly string[]): string {
  if (!Number.isFinite(value)) return String(value);
  let unit = 0;
  let size = Math.abs(value);
  // What would be printed as "1000K" moves on to the next unit.
  while (unit < units.length - 1 && size >= (unit === 0 ? base - 0.5 : base - 0.05)) {
    size /= base;
    unit++;
  }
  const digits = unit === 0 ? (Number.isInteger(value) || size >= 100 ? 0 : size >= 10 ? 1 : 2) : size < 999.95 ? 1 : 0;
  return `${value < 0 ? '-' : ''}${size.toFixed(digits)}${units[unit]}`;
}
