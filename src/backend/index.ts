/** Opens devices by name. One of each kind a process. */
import { CpuDevice } from './cpu/device.ts';
import type { Device, DeviceKind } from './device.ts';
import { AnsatzError } from './errors.ts';
import { MetaDevice } from './meta/device.ts';
import { RefDevice } from './ref/device.ts';

const makers: Partial<Record<DeviceKind, () => Device>> = {
  cpu: () => new CpuDevice(),
  meta: () => new MetaDevice(),
  ref: () => new RefDevice(),
};
const opened = new Map<DeviceKind, Device>();

/** Names that openDevice takes. */
export const deviceKinds = (): DeviceKind[] => Object.keys(makers) as DeviceKind[];

/**
 * A device by name. 'cpu' touches nothing but the CPU.
 * @throws AnsatzError for a name that this build does not have.
 */
export function openDevice(kind: string): Device {
  const known = opened.get(kind as DeviceKind);
  if (known) return known;
  const make = makers[kind as DeviceKind];
  if (!make) throw new AnsatzError(`no device '${kind}'`, { hint: `choose from ${deviceKinds().join(', ')}` });
  const device = make();
  opened.set(kind as DeviceKind, device);
  return device;
}

export type { Device } from './device.ts';
export { AnsatzError } from './errors.ts';
