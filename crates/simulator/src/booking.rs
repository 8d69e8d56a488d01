//! How long computation takes beside communication, and which cause each picosecond goes to.

use crate::fold::{Entity, ONE};
use crate::state::{Blocker, Running, State};
use rackflow_plan::{Accounts, Cause, SEGMENT_LEVELS, Segment};
use rackflow_units::{SimDuration, SimTime};

/// Expert load of an entity on a segment, fixed point.
pub(crate) fn load_of(entity: &Entity, segment: &Segment) -> u64 {
    if segment.routed { entity.load } else { ONE }
}

pub(crate) fn scaled(span: SimDuration, (load, slowdown): (u64, u64)) -> SimDuration {
    if load == ONE && slowdown == ONE {
        span
    } else {
        span.scale(load, ONE).scale(slowdown, ONE)
    }
}

pub(crate) fn scale_u64(value: u64, numerator: u64, denominator: u64) -> u64 {
    if numerator == denominator {
        return value;
    }
    (u128::from(value) * u128::from(numerator) / u128::from(denominator)) as u64
}

/// Time of the whole segment if the present communication stayed beside it.
pub(crate) fn stretched(
    segment: &Segment,
    scale: (u64, u64),
    state: &State,
    most_held_sms: u32,
) -> u64 {
    let mut time = segment.time[0];
    if state.held_sms > 0 {
        let top = SEGMENT_LEVELS as u32 - 1;
        let level = (state.held_sms * top)
            .div_ceil(most_held_sms.max(1))
            .min(top);
        time = segment.time[level as usize];
    }
    if state.memory_share > 0 {
        // What the communication takes of the memory bandwidth stretches the time at memory.
        let share = state.memory_share.min(ONE / 2);
        time += segment.memory_time.scale(share, ONE - share);
    }
    scaled(time, scale).as_picos().max(1)
}

/// When a computation is through if nothing changes and the host is in time.
pub(crate) fn natural_end(now: SimTime, left: u64, nominal: u64, stretched: u64) -> SimTime {
    let rest = if stretched == nominal {
        left
    } else {
        (u128::from(left) * u128::from(stretched)).div_ceil(u128::from(nominal.max(1))) as u64
    };
    now + SimDuration::from_picos(rest)
}

/// Books what a computation took beyond its own time `own`; what the host was late with its last kernels, as `late_cause`.
pub(crate) fn book_beyond(
    accounts: &mut Accounts,
    (own, late_cause): (SimDuration, Cause),
    running: Running,
    now: SimTime,
) {
    let wall = now.since(running.started);
    if wall == own {
        return;
    }
    let nominal = SimDuration::from_picos(running.nominal);
    accounts.book(Cause::Straggler, nominal.saturating_sub(own));
    let beyond = wall.saturating_sub(nominal);
    // What the host was late with the last kernels; the rest is communication beside them.
    let late = now.saturating_since(running.natural).min(beyond);
    accounts.book(late_cause, late);
    accounts.book(Cause::Contention, beyond - late);
}

/// Books `times` executions of a segment at this expert load; the parts sum to its own time.
pub(crate) fn book_segment(accounts: &mut Accounts, segment: &Segment, load: u64, times: u64) {
    let own = scaled(segment.time[0], (load, ONE));
    let mut left = own;
    let last = segment.causes.len().saturating_sub(1);
    for (i, (cause, span)) in segment.causes.iter().enumerate() {
        let part = if i == last {
            left
        } else {
            scaled(*span, (load, ONE)).min(left)
        };
        accounts.book_times(*cause, part, times);
        left -= part;
    }
    accounts.book_times(Cause::Launch, left, times);
}

/// Books the time for which the compute stream waited for a communication. Of several that end at one
/// instant the same one is booked whichever is told first: the order of simultaneous events is not
/// the same when ranks are folded, and must not reach a result.
pub(crate) fn book_wait(state: &mut State, blocker: Blocker, now: SimTime, waiting: Cause) {
    let mut from = state.idle_from;
    if let Some((at, since, other)) = state.last_wait
        && at == now
    {
        if other.rank() <= blocker.rank() {
            return;
        }
        for (cause, span) in wait_parts(since, other, now, waiting) {
            state.accounts.unbook(cause, span);
        }
        from = since;
    }
    for (cause, span) in wait_parts(from, blocker, now, waiting) {
        state.accounts.book(cause, span);
    }
    state.idle_from = now;
    state.last_wait = Some((now, from, blocker));
}

/// What a wait from `from` to `now` was for.
fn wait_parts(
    from: SimTime,
    blocker: Blocker,
    now: SimTime,
    waiting: Cause,
) -> [(Cause, SimDuration); 3] {
    let started = blocker.started.max(from);
    let exposed = blocker.exposed;
    let on_links = (exposed, now.since(started));
    if blocker.message {
        let late = (Cause::Bubble, started.since(from));
        return [late, on_links, (exposed, SimDuration::ZERO)];
    }
    // First it queued behind other communication, then it waited for its partners.
    let ready = blocker.ready.max(from).min(started);
    [
        (exposed, ready.since(from)),
        (waiting, started.since(ready)),
        on_links,
    ]
}
