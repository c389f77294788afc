/** Counters, gauges and histograms in Prometheus' text format (version 0.0.4). */

type Labels = Readonly<Record<string, string>>;

const escaped = (value: string): string => value.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n');
const labelled = (labels: Labels): string => {
  const parts = Object.entries(labels).map(([k, v]) => `${k}="${escaped(v)}"`);
  return parts.length > 0 ? `{${parts.join(',')}}` : '';
};

interface Metric {
  text(): string[];
}

class Counter implements Metric {
  private readonly head: string[];
  private readonly name: string;
  private readonly values = new Map<string, number>();

  constructor(name: string, help: string) {
    this.name = name;
    this.head = [`# HELP ${name} ${help}`, `# TYPE ${name} counter`];
  }

  add(labels: Labels, amount = 1): void {
    const key = labelled(labels);
    this.values.set(key, (this.values.get(key) ?? 0) + amount);
  }

  text(): string[] {
    return [...this.head, ...[...this.values].map(([key, v]) => `${this.name}${key} ${v}`)];
  }
}

/** Read when asked for. */
class Gauge implements Metric {
  private readonly head: string[];
  private readonly name: string;
  private readonly read: () => Iterable<[Labels, number]>;

  constructor(name: string, help: string, type: 'gauge' | 'counter', read: () => Iterable<[Labels, number]>) {
    [this.name, this.read] = [name, read];
    this.head = [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`];
  }

  text(): string[] {
    return [...this.head, ...[...this.read()].map(([labels, v]) => `${this.name}${labelled(labels)} ${v}`)];
  }
}

class Histogram implements Metric {
  private readonly head: string[];
  private readonly name: string;
  private readonly bounds: readonly number[];
  private readonly series = new Map<string, { labels: Labels; counts: number[]; sum: number; count: number }>();

  constructor(name: string, help: string, bounds: readonly number[]) {
    [this.name, this.bounds] = [name, bounds];
    this.head = [`# HELP ${name} ${help}`, `# TYPE ${name} histogram`];
  }

  note(labels: Labels, value: number): void {
    const key = labelled(labels);
    let s = this.series.get(key);
    if (!s) this.series.set(key, (s = { labels, counts: this.bounds.map(() => 0), sum: 0, count: 0 }));
    s.sum += value;
    s.count++;
    this.bounds.forEach((bound, k) => {
      if (value <= bound) s.counts[k]++;
    });
  }

  text(): string[] {
    const lines = [...this.head];
    for (const { labels, counts, sum, count } of this.series.values()) {
      const bucket = (le: string, n: number): string => `${this.name}_bucket${labelled({ ...labels, le })} ${n}`;
      this.bounds.forEach((bound, k) => {
        lines.push(bucket(String(bound), counts[k]));
      });
      lines.push(bucket('+Inf', count));
      lines.push(`${this.name}_sum${labelled(labels)} ${sum}`, `${this.name}_count${labelled(labels)} ${count}`);
    }
    return lines;
  }
}

export class Metrics {
  private readonly all: Metric[] = [];

  counter(name: string, help: string): Counter {
    return this.keep(new Counter(name, help));
  }

  histogram(name: string, help: string, bounds: readonly number[]): Histogram {
    return this.keep(new Histogram(name, help, bounds));
  }

  /** A value that something else keeps. `counter`: one that only grows. */
  read(name: string, help: string, read: () => Iterable<[Labels, number]>, type: 'gauge' | 'counter' = 'gauge'): void {
    this.keep(new Gauge(name, help, type, read));
  }

  text(): string {
    return `${this.all.flatMap((m) => m.text()).join('\n')}\n`;
  }

  private keep<M extends Metric>(metric: M): M {
    this.all.push(metric);
    return metric;
  }
}

export type { Counter, Histogram };
