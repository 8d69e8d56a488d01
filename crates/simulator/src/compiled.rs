//! A program in the form in which the event loop reads it.

use rackflow_plan::{Plan, Program, Stream, Work};
use rackflow_units::SimDuration;

/// A program with what the loop looks up in it.
pub(crate) struct Compiled<'p> {
    pub program: &'p Program,
    /// Tasks of each stream, in order.
    pub streams: [Vec<u32>; Stream::COUNT],
    /// Tasks that wait for a task, by range.
    pub successors: Vec<u32>,
    pub successor_start: Vec<u32>,
    pub waits: Vec<u16>,
    /// Host time before each task is issued, if nothing made the host wait.
    pub issue: Vec<SimDuration>,
    /// The first task from here on that the host waits for, or the last task.
    pub host_limit: Vec<u32>,
    /// How often each segment of the plan is computed.
    pub executions: Vec<u32>,
}

impl<'p> Compiled<'p> {
    pub fn new(program: &'p Program, plan: &Plan, kind: u32) -> Self {
        let segments = plan.segments_on(kind);
        let communication_launch = plan.communication_launch_on(kind);
        let count = program.tasks.len();
        let mut streams: [Vec<u32>; Stream::COUNT] = Default::default();
        let mut waits = vec![0u16; count];
        let mut successor_start = vec![0u32; count + 1];
        let mut issue = Vec::with_capacity(count + 1);
        let mut executions = vec![0u32; segments.len()];
        let mut host = SimDuration::ZERO;
        for (index, task) in program.tasks.iter().enumerate() {
            streams[task.stream as usize].push(index as u32);
            issue.push(host);
            host += match task.work {
                Work::Compute(id) => {
                    executions[id.0 as usize] += 1;
                    segments[id.0 as usize].launch
                }
                _ => communication_launch,
            };
            let needed = program.waits_of(index as u32);
            waits[index] = u16::try_from(needed.len()).expect("a task waits for few others");
            for before in needed {
                successor_start[*before as usize + 1] += 1;
            }
        }
        issue.push(host);
        for i in 0..count {
            successor_start[i + 1] += successor_start[i];
        }
        let mut fill = successor_start.clone();
        let mut successors = vec![0u32; successor_start[count] as usize];
        for index in 0..count as u32 {
            for before in program.waits_of(index) {
                let at = &mut fill[*before as usize];
                successors[*at as usize] = index;
                *at += 1;
            }
        }
        let mut host_limit = vec![u32::MAX; count + 1];
        for index in (0..count).rev() {
            host_limit[index] = if program.tasks[index].host_waits {
                index as u32
            } else {
                host_limit[index + 1]
            };
        }
        Self {
            program,
            streams,
            successors,
            successor_start,
            waits,
            issue,
            host_limit,
            executions,
        }
    }

    pub fn successors_of(&self, task: u32) -> std::ops::Range<usize> {
        self.successor_start[task as usize] as usize
            ..self.successor_start[task as usize + 1] as usize
    }
}
