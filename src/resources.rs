//! What the process may use and does use: CPUs by affinity and quota, resident memory.
//!
//! A container sees the host's cores; threads beyond its CPU quota only get throttled. So the number of usable CPUs is the
//! smallest of affinity, quota (cgroup v2 and v1, every level above the process) and cores.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// CPUs that the process can keep busy, at least 1.
pub fn usable_cpus() -> usize {
    // Not the standard library's number alone: it rounds a quota of 1.5 CPUs down, and half a CPU would lie idle.
    let cores = affinity().unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let quota = smallest(Path::new("/"), "cpu", folder_quota).map_or(usize::MAX, |cpus| cpus.ceil() as usize);
    cores.min(quota).max(1)
}

/// From now on this thread, and those that it starts, only get the CPU time that others leave: whoever wakes up takes the
/// processor from it at once. Cannot be undone.
pub fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::ThreadPriority;
        use thread_priority::unix::{NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id};
        /// The least weight of the ordinary scheduling class: about one seventieth of a normal thread's.
        const NICE: i32 = 19;
        // On Linux this is the calling thread's. A system that refuses leaves it as it is, which costs latency only.
        let _ = rustix::process::setpriority_process(None, NICE);
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
    }
}

/// Lets memory have huge pages for which they are asked, where the system gives them to no other: the allocator has switched them off for the
/// whole process, because of the systems that give them to all memory.
pub fn allow_huge_pages() {
    #[cfg(target_os = "linux")]
    if fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|modes| modes.contains("[madvise]")) {
        // Without them all is slower, and works.
        let _ = rustix::thread::disable_transparent_huge_pages(false);
    }
}

/// CPU time that the calling thread has had; `None` where the system does not tell.
pub fn thread_time() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Resident memory of the process in bytes now; 0 where the system does not tell.
pub fn resident_bytes() -> usize {
    status_bytes("VmRSS:")
}

/// The most memory that was ever resident in bytes; 0 where the system does not tell.
pub fn resident_bytes_peak() -> usize {
    status_bytes("VmHWM:")
}

/// Bytes of memory that the process may have, by the machine and its cgroups (version 2 and 1, every level above the process);
/// 4 GiB where the system does not tell.
pub fn memory_bytes() -> usize {
    const UNKNOWN: usize = 4 << 30;
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_status(&text, "MemTotal:"));
    smallest(Path::new("/"), "memory", folder_memory).into_iter().chain(machine).min().unwrap_or(UNKNOWN)
}

/// CPUs on which the process may run, which are at most the machine's; `None` where the system does not tell.
#[cfg(target_os = "linux")]
fn affinity() -> Option<usize> {
    rustix::thread::sched_getaffinity(None).ok().map(|set| set.count() as usize)
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Option<usize> {
    None
}

/// The smallest limit on the process's way up its cgroups, those of version 1 for `controller`; `limit` tells that of one. `root`
/// stands for `/`.
fn smallest<T: PartialOrd>(root: &Path, controller: &str, limit: impl Fn(&Path) -> Option<T>) -> Option<T> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut smallest: Option<T> = None;
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let mount = if controllers.is_empty() {
            root.join("sys/fs/cgroup")
        } else if controllers.split(',').any(|name| name == controller) {
            root.join("sys/fs/cgroup").join(controller)
        } else {
            continue;
        };
        // A container often sees its own cgroup as the root of the mount while the path names it from outside: what does
        // not exist is skipped, and the way up ends at the mount itself.
        let mut folder = mount.join(path.trim_start_matches('/'));
        while folder.starts_with(&mount) {
            smallest = match (smallest, limit(&folder)) {
                (Some(a), Some(b)) => Some(if b < a { b } else { a }),
                (a, b) => a.or(b),
            };
            if !folder.pop() {
                break;
            }
        }
    }
    smallest
}

/// The quota that one cgroup sets, in CPUs.
fn folder_quota(folder: &Path) -> Option<f64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    if let Some(text) = read("cpu.max") {
        return parse_v2(&text);
    }
    parse_v1(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
}

/// The bytes of memory that one cgroup allows; `memory.max` is `max` without a limit.
fn folder_memory(folder: &Path) -> Option<usize> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    read("memory.max").or_else(|| read("memory.limit_in_bytes"))?.trim().parse().ok()
}

/// `cpu.max`: `<quota or max> <period>`, both in microseconds.
fn parse_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us` (-1: none) and `cpu.cfs_period_us`.
fn parse_v1(quota: &str, period: &str) -> Option<f64> {
    ratio(quota.trim().parse().ok()?, period.trim().parse().ok()?)
}

fn ratio(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn status_bytes(key: &str) -> usize {
    fs::read_to_string("/proc/self/status").ok().and_then(|text| parse_status(&text, key)).unwrap_or(0)
}

/// A line of `/proc/self/status` or `/proc/meminfo`: `VmRSS:      5120 kB`.
fn parse_status(text: &str, key: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths below the root and what they hold.
    type Files = [(&'static str, &'static str)];

    /// A root folder with the given files.
    fn root(name: &str, files: &Files) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("ndserve-cgroup-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_has_the_time_it_works_and_not_that_it_sleeps() {
        let before = thread_time().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_time().unwrap() - before < Duration::from_millis(40));
        while thread_time().unwrap() == before {}
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let cases: &[(&str, &Files, Option<f64>)] = &[
            ("none", &[], None),
            ("v2-unlimited", &[("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/cpu.max", "max 100000\n")], None),
            (
                "v2-parent",
                &[
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
                    ("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n"),
                ],
                Some(1.5),
            ),
            ("v2-container", &[("proc/self/cgroup", "0::/docker/0123\n"), ("sys/fs/cgroup/cpu.max", "50000 100000\n")], Some(0.5)),
            (
                "v1",
                &[
                    ("proc/self/cgroup", "5:memory:/m\n4:cpu,cpuacct:/x\n"),
                    ("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "300000\n"),
                    ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
                ],
                Some(3.0),
            ),
            (
                "v1-unlimited",
                &[
                    ("proc/self/cgroup", "4:cpu,cpuacct:/\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                ],
                None,
            ),
            ("nonsense", &[("proc/self/cgroup", "::\n0::/../..\nx\n"), ("sys/fs/cgroup/cpu.max", "a b c\n")], None),
        ];
        for (name, files, want) in cases {
            let root = root(name, files);
            assert_eq!(smallest(&root, "cpu", folder_quota), *want, "{name}");
            let _ = fs::remove_dir_all(root);
        }
    }

    #[test]
    fn the_smallest_memory_on_the_way_up_counts() {
        let cases: &[(&str, &Files, Option<usize>)] = &[
            ("memory-none", &[("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "max\n")], None),
            (
                "memory-v2",
                &[
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("sys/fs/cgroup/memory.max", "max\n"),
                    ("sys/fs/cgroup/a/memory.max", "1000\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "4000\n"),
                ],
                Some(1000),
            ),
            ("memory-container", &[("proc/self/cgroup", "0::/docker/0123\n"), ("sys/fs/cgroup/memory.max", "500\n")], Some(500)),
            (
                "memory-v1",
                &[
                    ("proc/self/cgroup", "5:memory:/m\n4:cpu,cpuacct:/x\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "3000\n"),
                    ("sys/fs/cgroup/cpu/x/memory.limit_in_bytes", "1\n"),
                ],
                Some(3000),
            ),
        ];
        for (name, files, want) in cases {
            let root = root(name, files);
            assert_eq!(smallest(&root, "memory", folder_memory), *want, "{name}");
            let _ = fs::remove_dir_all(root);
        }
    }

    #[test]
    fn resident_memory_is_read_from_the_status() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(text, "VmRSS:"), Some(1 << 20));
        assert_eq!(parse_status(text, "VmHWM:"), Some(2 << 20));
        assert_eq!(parse_status("VmRSS:\tmuch\n", "VmRSS:"), None);
    }

    #[test]
    fn this_machine_has_a_cpu() {
        assert!(usable_cpus() >= 1);
    }
}
