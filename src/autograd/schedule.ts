/** Learning-rate schedules: a factor on the peak rate as a function of the step, counted from 0. All warm up alike. */

export interface ScheduleOptions {
  /** Steps of linear increase from 0; the factor of step 0 is 0 when there are any. */
  readonly warmupSteps: number;
  /** Step at which the factor has come down to 0, and stays there. */
  readonly totalSteps: number;
}

/** Up linearly, then down linearly to 0 (transformers.get_linear_schedule_with_warmup). */
export function linearSchedule(step: number, { warmupSteps, totalSteps }: ScheduleOptions): number {
  if (step < warmupSteps) return step / warmupSteps;
  return Math.max(0, (totalSteps - step) / Math.max(1, totalSteps - warmupSteps));
}

/** Up linearly, then down to 0 along half a cosine (transformers.get_cosine_schedule_with_warmup). */
export function cosineSchedule(step: number, { warmupSteps, totalSteps }: ScheduleOptions): number {
  if (step < warmupSteps) return step / warmupSteps;
  const progress = (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps);
  return progress >= 1 ? 0 : 0.5 * (1 + Math.cos(Math.PI * progress));
}

/** Up linearly, then level (transformers.get_constant_schedule_with_warmup). */
export function constantSchedule(step: number, { warmupSteps }: ScheduleOptions): number {
  return step < warmupSteps ? step / warmupSteps : 1;
}

/** All of them, by the names that users know. */
export const schedules = { linear: linearSchedule, cosine: cosineSchedule, constant: constantSchedule };
