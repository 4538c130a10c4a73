//! Snapshots of a small machine: whole ones, damaged ones, and ones whose writer came to an end.

mod failing_disk;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use failing_disk::{End, FailingDisk};
use pvtime::host::ledger::Accounts;
use pvtime::host::saved::{SavedVcpu, Sequences};
use pvtime::host::timeline::{Config, Event, HostSample, Timeline, WallStandard};
use pvtime::host::timers::{Timer, TimerControl, VcpuTimers};
use pvtime::host::{Cause, HostCount};
use pvtime::scale::{CompareValue, Frequency};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vm_superio::{RtcState, SerialState};

use super::disk::{Disk, FileSystem};
use super::manifest::{Manifest, Section};
use super::memory::CHUNK_BYTES;
use super::save::save_on;
use super::*;
use crate::generation::{Generation, GenerationId};
use crate::state::MachineState;
use crate::state::devices::DeviceStates;
use crate::state::gic::{GicCpuState, GicState, Interface, Interrupts};
use crate::state::register::{Register, RegisterId};
use crate::state::vcpu::{SError, VcpuState};

const FREQUENCY_HZ: u64 = 25_000_000;
const TIME: &[u8] = b"not JSON \0\xff";
const CHUNK: u64 = CHUNK_BYTES as u64;
/// Two ranges: one of two chunks and a page, one of a page.
const RANGES: [(GuestAddress, usize); 2] = [
    (GuestAddress(0x4000_0000), 2 * CHUNK_BYTES + 0x1000),
    (GuestAddress(0x1_0000_0000), 0x1000),
];
const MEMORY_BYTES: u64 = 2 * CHUNK + 0x2000;

/// What is in memory: at the start, inside and at the end of chunks, with a chunk of zeros between.
const DATA: [(u64, u8); 4] = [
    (0x4000_0000, 1),
    (0x4000_5678, 2),
    (0x4000_0000 + 2 * CHUNK + 0xfff, 3),
    (0x1_0000_0000, 4),
];

fn zeros() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&RANGES).unwrap()
}

fn memory() -> GuestMemoryMmap {
    let memory = zeros();
    for (address, byte) in DATA {
        memory.write_obj(byte, GuestAddress(address)).unwrap();
    }
    memory
}

fn bytes(memory: &GuestMemoryMmap) -> Vec<u8> {
    let read = |(start, bytes)| {
        let mut contents = vec![0xa5; bytes];
        memory.read_slice(&mut contents, start).unwrap();
        contents
    };
    RANGES.into_iter().flat_map(read).collect()
}

fn machine() -> MachineState {
    let interrupts = Interrupts {
        groups: vec![u32::MAX],
        priorities: vec![0xa0a0_a0a0; 8],
        configurations: vec![0, 2],
        enabled: vec![0x0800_ffff],
        lines: vec![0],
        latched: vec![2],
        active: vec![0],
    };
    MachineState {
        vcpus: vec![VcpuState {
            features: [4, 0, 0, 0, 0, 0, 0],
            mp_state: 0,
            serror: Some(SError {
                syndrome: Some(0x1234),
            }),
            registers: vec![
                Register {
                    id: RegisterId(0x6030_0000_0010_0000),
                    value: vec![1, 2, 3, 4, 5, 6, 7, 8],
                },
                Register {
                    id: RegisterId(0x6040_0000_0010_0054),
                    value: vec![0xff; 16],
                },
            ],
        }],
        gic: GicState {
            interrupts: 64,
            implementation: 0x4b00_243b,
            control: 0x52,
            routes: vec![0; 32],
            shared: interrupts.clone(),
            cpus: vec![GicCpuState {
                affinity: 0,
                private: interrupts,
                interface: Interface {
                    sre: 7,
                    ctlr: 0x400,
                    pmr: 0xf0,
                    bpr0: 2,
                    bpr1: 3,
                    ap0r: vec![0],
                    ap1r: vec![u64::MAX],
                    igrpen0: 0,
                    igrpen1: 1,
                },
            }],
        },
        devices: DeviceStates {
            keys: None,
            console: SerialState {
                in_buffer: b"typed".to_vec(),
                ..SerialState::default()
            },
            serial: SerialState::default(),
            rtc: RtcState::default(),
        },
        suspend_call: None,
        generation: Generation {
            count: 7,
            id: GenerationId([0x5a; 16]),
        },
    }
}

/// Saves the machine on a disk.
fn save_with(disk: &dyn Disk, directory: &Path) -> Result<(), SaveError> {
    let memory = memory();
    let machine = machine();
    let contents = Contents {
        machine: &machine,
        time: TIME,
        memory: &memory,
        counter_frequency_hz: FREQUENCY_HZ,
    };
    save_on(disk, directory, &contents, &mut |_| ())
}

/// Opens a snapshot, loads it, and looks that it is the machine.
fn restore(directory: &Path) -> Result<(), OpenError> {
    let snapshot = open(directory)?;
    let memory = zeros();
    let loaded = snapshot.load(&memory, &mut |_| ())?;
    assert_eq!(loaded.machine, machine());
    assert_eq!(loaded.time, TIME);
    assert!(bytes(&memory) == bytes(&self::memory()), "memory differs");
    Ok(())
}

/// A folder with a snapshot in it.
struct Saved {
    folder: TempDir,
}

impl Saved {
    fn new() -> Self {
        let saved = Self {
            folder: TempDir::new().unwrap(),
        };
        save_with(&FileSystem, &saved.path()).unwrap();
        saved
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("snapshot")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn refused(&self) -> OpenError {
        restore(&self.path()).unwrap_err()
    }

    /// Changes the manifest, with the right checksum.
    fn rewrite(&self, change: impl FnOnce(&mut Manifest)) {
        let path = self.file(MANIFEST_FILE);
        let mut manifest = Manifest::parse(&self.path(), &fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        fs::write(path, manifest.emit()).unwrap();
    }
}

const SMALL_FILES: [&str; 4] = [MANIFEST_FILE, MACHINE_FILE, TIME_FILE, INDEX_FILE];

#[test]
fn a_snapshot_restores_as_often_as_one_likes() {
    let saved = Saved::new();
    for _ in 0..2 {
        restore(&saved.path()).unwrap();
    }
    let names: BTreeSet<_> = fs::read_dir(saved.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let files = SMALL_FILES.into_iter().chain([MEMORY_FILE]);
    assert_eq!(names, files.map(str::to_owned).collect());
    let around = fs::read_dir(saved.folder.path()).unwrap().count();
    assert_eq!(around, 1, "nothing is left beside it");
}

#[test]
fn facts_are_those_of_the_machine() {
    let saved = Saved::new();
    let snapshot = open(&saved.path()).unwrap();
    let facts = Facts {
        pvtime: env!("CARGO_PKG_VERSION").into(),
        architecture: std::env::consts::ARCH.into(),
        counter_frequency_hz: FREQUENCY_HZ,
        memory_bytes: MEMORY_BYTES,
        vcpus: 1,
    };
    assert_eq!(*snapshot.facts(), facts);
}

#[test]
fn zeros_are_holes_and_only_the_owner_reads() {
    let saved = Saved::new();
    let memory = fs::metadata(saved.file(MEMORY_FILE)).unwrap();
    assert_eq!(memory.len(), MEMORY_BYTES);
    let allocated = memory.blocks() * 512;
    assert!(allocated <= 0x1_0000, "{allocated} bytes for 4 pages");
    assert_eq!(memory.permissions().mode() & 0o777, 0o600);
    let directory = fs::metadata(saved.path()).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_copy_without_holes_restores() {
    let saved = Saved::new();
    let memory = fs::read(saved.file(MEMORY_FILE)).unwrap();
    fs::write(saved.file(MEMORY_FILE), memory).unwrap();
    restore(&saved.path()).unwrap();
}

#[test]
fn progress_goes_from_the_first_chunk_to_the_last() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("snapshot");
    let memory = memory();
    let machine = machine();
    let contents = Contents {
        machine: &machine,
        time: TIME,
        memory: &memory,
        counter_frequency_hz: FREQUENCY_HZ,
    };
    let check = |seen: &[Progress]| {
        assert_eq!(seen.len(), 4);
        assert!(seen.is_sorted_by_key(|progress| progress.done_bytes));
        assert_eq!(seen[3].done_bytes, MEMORY_BYTES);
        assert!(seen.iter().all(|seen| seen.total_bytes == MEMORY_BYTES));
    };
    let mut seen = Vec::new();
    save(&path, &contents, &mut |progress| seen.push(progress)).unwrap();
    check(&seen);
    seen.clear();
    let snapshot = open(&path).unwrap();
    snapshot
        .load(&zeros(), &mut |progress| seen.push(progress))
        .unwrap();
    check(&seen);
}

#[test]
fn every_changed_byte_of_a_small_file_is_noticed() {
    let saved = Saved::new();
    for name in SMALL_FILES {
        let path = saved.file(name);
        let whole = fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        for (offset, byte) in (0..).zip(&whole) {
            for flip in [0x20, 0xff] {
                file.write_all_at(&[byte ^ flip], offset).unwrap();
                match open(&saved.path()) {
                    Err(OpenError::Damaged { path: named }) => assert_eq!(named, path),
                    other => panic!("byte {offset} of {name}: {other:?}"),
                }
            }
            file.write_all_at(&[*byte], offset).unwrap();
        }
    }
    restore(&saved.path()).unwrap();
}

#[test]
fn every_other_length_of_a_small_file_is_noticed() {
    let saved = Saved::new();
    for name in SMALL_FILES {
        let path = saved.file(name);
        let whole = fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let lengths = [3 << 20, whole.len() + 1].into_iter();
        for length in lengths.chain((0..whole.len()).rev()) {
            file.set_len(length as u64).unwrap();
            match open(&saved.path()) {
                Err(OpenError::Damaged { path: named }) if name == MANIFEST_FILE => {
                    assert_eq!(named, path);
                }
                Err(OpenError::Length {
                    path: named,
                    expected,
                    actual,
                }) if name != MANIFEST_FILE => {
                    assert_eq!(named, path);
                    assert_eq!([expected, actual], [whole.len() as u64, length as u64]);
                }
                other => panic!("{length} bytes of {name}: {other:?}"),
            }
        }
        fs::write(&path, whole).unwrap();
    }
    restore(&saved.path()).unwrap();
}

#[test]
fn every_changed_page_of_memory_is_noticed_by_its_chunk() {
    let saved = Saved::new();
    let path = saved.file(MEMORY_FILE);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // Data, zeros beside data, holes, the last byte.
    for offset in [
        0,
        1,
        0x5678,
        0xf000,
        CHUNK,
        2 * CHUNK - 1,
        2 * CHUNK + 0xfff,
        2 * CHUNK + 0x1000,
        MEMORY_BYTES - 1,
    ] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x80], offset).unwrap();
        match restore(&saved.path()) {
            Err(OpenError::DamagedMemory { start, end, .. }) => {
                assert!((start..end).contains(&offset), "{start:#x} {end:#x}");
            }
            other => panic!("byte {offset:#x}: {other:?}"),
        }
        file.write_all_at(&byte, offset).unwrap();
    }
    restore(&saved.path()).unwrap();

    for length in [0, MEMORY_BYTES - 1, MEMORY_BYTES + 1] {
        file.set_len(length).unwrap();
        let error = saved.refused();
        assert!(
            matches!(error, OpenError::Length { expected: MEMORY_BYTES, actual, .. } if actual == length),
            "{error}"
        );
    }
}

#[test]
fn memory_that_became_zero_is_noticed() {
    let saved = Saved::new();
    let file = File::options()
        .write(true)
        .open(saved.file(MEMORY_FILE))
        .unwrap();
    file.set_len(0).unwrap();
    file.set_len(MEMORY_BYTES).unwrap();
    let error = saved.refused();
    assert!(matches!(error, OpenError::DamagedMemory { .. }), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    for name in SMALL_FILES.into_iter().chain([MEMORY_FILE]) {
        let saved = Saved::new();
        fs::remove_file(saved.file(name)).unwrap();
        match saved.refused() {
            OpenError::NotASnapshot { path } if name == MANIFEST_FILE => {
                assert_eq!(path, saved.path());
            }
            OpenError::Missing { path } => assert_eq!(path, saved.file(name)),
            error => panic!("{name}: {error}"),
        }
    }
    let nowhere = restore(Path::new("/nonexistent")).unwrap_err();
    assert_eq!(
        nowhere.to_string(),
        "/nonexistent is no snapshot: there is no snapshot.json in it; name the directory of one"
    );
    let file = restore(Path::new("/dev/null")).unwrap_err();
    assert!(matches!(file, OpenError::NotASnapshot { .. }), "{file}");
}

#[test]
fn what_is_no_file_is_named_and_not_waited_for() {
    for name in SMALL_FILES.into_iter().chain([MEMORY_FILE]) {
        let saved = Saved::new();
        let path = saved.file(name);
        fs::remove_file(&path).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, pipe, 0o600.into(), 0).unwrap();
        let error = saved.refused();
        assert!(
            matches!(&error, OpenError::NotAFile { path: named } if *named == path),
            "{error}"
        );
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = saved.refused();
        assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
    }
}

#[test]
fn another_architecture_and_another_format_are_refused() {
    let saved = Saved::new();
    saved.rewrite(|manifest| manifest.facts.architecture = "riscv64".into());
    let error = saved.refused().to_string();
    assert!(
        error.contains("is of an riscv64 machine, and this is"),
        "{error}"
    );

    saved.rewrite(|manifest| manifest.format = FORMAT + 1);
    let error = saved.refused();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
}

#[test]
fn what_its_vcpus_are_is_known_before_memory_is_read() {
    const MIDR: u64 = 0x6030_0000_0013_c000;
    const TIMER_CNT: u64 = 0x6030_0000_0013_df1a;
    let register = |id, value: u64| Register {
        id: RegisterId(id),
        value: value.to_le_bytes().into(),
    };
    let mut machine = machine();
    let core = machine.vcpus[0].registers.iter().map(|it| it.id.0);
    let core: Vec<_> = core.collect();
    let more = [register(MIDR, 0x410f_d0c1), register(TIMER_CNT, 1)];
    machine.vcpus[0].registers.splice(0..0, more.clone());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("snapshot");
    let contents = Contents {
        machine: &machine,
        time: TIME,
        memory: &memory(),
        counter_frequency_hz: FREQUENCY_HZ,
    };
    save(&path, &contents, &mut |_| ()).unwrap();
    let opened = open(&path).unwrap();
    assert_eq!(opened.gic_implementation(), 0x4b00_243b);
    let cpus: Vec<_> = opened.cpus().collect();
    let [cpu] = &cpus[..] else {
        panic!("{cpus:?}");
    };
    assert_eq!(cpu.features, machine.vcpus[0].features);
    assert_eq!(cpu.identity, more[..1]);
    assert_eq!(cpu.others, core);
}

#[test]
fn a_host_with_reasons_against_it_is_refused_with_the_first_of_them() {
    let saved = Saved::new();
    let opened = open(&saved.path()).unwrap();
    opened.check_refusals(Vec::new()).unwrap();
    let reasons = ["MIDR_EL1 was 1", "and the next"].map(str::to_owned);
    let error = opened.check_refusals(reasons.into()).unwrap_err();
    let text = error.to_string();
    let end = "snapshot cannot go on here, for 2 reason(s), first: MIDR_EL1 was 1";
    assert!(text.ends_with(end), "{text}");
}

/// The time of a VM that stopped on a host of [`FREQUENCY_HZ`] after a second.
fn saved_time(live_physical_time: Option<Frequency>, asked_for: bool) -> Vec<u8> {
    let at = |s: u64| HostSample {
        counter: HostCount(s * FREQUENCY_HZ),
        frequency: Frequency::from_hz(FREQUENCY_HZ).unwrap(),
        wall_ns: s * 1_000_000_000,
        wall_standard: WallStandard::Realtime,
        wall_error_ns: 0,
        boottime_ns: s * 1_000_000_000,
        monotonic_ns: s * 1_000_000_000,
        monotonic_raw_ns: s * 1_000_000_000,
        span_ns: 0,
    };
    let config = Config {
        live_physical_time,
        ..Config::default()
    };
    let events = [
        Some(Event::Start),
        asked_for.then_some(Event::LivePhysicalTimeFound),
        Some(Event::Pause(Cause::Snapshot)),
    ];
    let vm = (1..)
        .zip(events.into_iter().flatten())
        .fold(Timeline::new(config).unwrap(), |vm, (s, event)| {
            vm.step(at(s), event).unwrap().timeline
        });
    let timer = Timer {
        control: TimerControl(0),
        compare_value: CompareValue(0),
    };
    let vcpu = SavedVcpu {
        timers: VcpuTimers::new(timer, timer, 0),
        stolen: None,
        accounts: Accounts::default(),
    };
    [
        &vm.save(Sequences::default()).unwrap().emit()[..],
        &vcpu.emit(),
    ]
    .concat()
}

#[test]
fn a_snapshot_of_format_1_has_no_generation() {
    let saved = Saved::new();
    let mut machine = serde_json::to_value(machine()).unwrap();
    machine.as_object_mut().unwrap().remove("generation");
    let machine = serde_json::to_vec(&machine).unwrap();
    fs::write(saved.file(MACHINE_FILE), &machine).unwrap();
    saved.rewrite(|manifest| {
        manifest.format = 1;
        manifest.machine = Section::of(&machine);
    });
    let loaded = open(&saved.path()).unwrap().load(&zeros(), &mut |_| ());
    assert_eq!(loaded.unwrap().machine.generation, Generation::default());
}

#[test]
fn a_generation_that_is_too_short_is_refused() {
    let saved = Saved::new();
    let machine = serde_json::to_string(&machine()).unwrap();
    let machine = machine.replace("5a5a5a5a", "5a5a5a").into_bytes();
    fs::write(saved.file(MACHINE_FILE), &machine).unwrap();
    saved.rewrite(|manifest| manifest.machine = Section::of(&machine));
    let error = saved.refused();
    assert!(
        matches!(&error, OpenError::Content { path, .. } if *path == saved.file(MACHINE_FILE)),
        "{error}"
    );
}

#[test]
fn t13_l15_another_frequency_is_refused_without_live_physical_time() {
    let saved = Saved::new();
    let (memory, machine) = (memory(), machine());
    let pv = Frequency::from_hz(1_000_000_000).unwrap();
    let (here, there) = (
        Frequency::from_hz(FREQUENCY_HZ).unwrap(),
        Frequency::from_hz(31_250_000).unwrap(),
    );
    for (name, live, asked_for, refusal) in [
        (
            "linux",
            None,
            false,
            Some("choose a host of the same frequency, or start the VM with live physical time"),
        ),
        (
            "unaware",
            Some(pv),
            false,
            Some(
                "its guest did not ask for live physical time; choose a host of the same frequency",
            ),
        ),
        ("aware", Some(pv), true, None),
    ] {
        let path = saved.folder.path().join(name);
        let contents = Contents {
            machine: &machine,
            time: &saved_time(live, asked_for),
            memory: &memory,
            counter_frequency_hz: FREQUENCY_HZ,
        };
        save(&path, &contents, &mut |_| ()).unwrap();
        let snapshot = open(&path).unwrap();
        assert_eq!(snapshot.time().unwrap().live_physical_time(), live, "l1");
        snapshot.check_host(here).unwrap();
        let error = snapshot.check_host(there).err();
        let error = error.map(|error| error.to_string());
        let expected = refusal.map(|refusal| {
            format!(
                "{} cannot go on here: the VM's counter runs at 25000000 Hz and this host's at \
                 31250000 Hz: {refusal}",
                path.display()
            )
        });
        assert_eq!(error, expected);
    }
}

#[test]
fn time_of_other_vcpus_than_the_machines_is_told() {
    let saved = Saved::new();
    let (memory, machine, whole) = (memory(), machine(), saved_time(None, false));
    let one = whole.len() - SavedVcpu::SIZE_BYTES;
    let two = [&whole, &whole[one..]].concat();
    for (name, time, said) in [
        (
            "none",
            &whole[..one],
            "the time of 0 vCPUs, of a machine of 1",
        ),
        ("two", &two, "the time of 2 vCPUs, of a machine of 1"),
        ("half", &whole[..one + 9], "a saved vCPU time has"),
    ] {
        let path = saved.folder.path().join(name);
        let contents = Contents {
            machine: &machine,
            time,
            memory: &memory,
            counter_frequency_hz: FREQUENCY_HZ,
        };
        save(&path, &contents, &mut |_| ()).unwrap();
        let error = open(&path).unwrap().time().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_snapshot_that_was_made_and_a_vm_that_was_not_resumed_are_told_apart() {
    let (folder, ok) = (Path::new("/vm/one"), || Ok(()));
    let failed = |reason: &'static str| Err(anyhow::anyhow!(reason));
    outcome(folder, ok(), ok()).unwrap();
    for (saved, resumed, said) in [
        (
            ok(),
            failed("the counter is busy"),
            "/vm/one holds the whole VM, which could not go on and stays paused: the counter is busy",
        ),
        (failed("the disk is full"), ok(), "the disk is full"),
        (
            failed("the disk is full"),
            failed("the counter is busy"),
            "the VM could not go on either and stays paused (the counter is busy): the disk is full",
        ),
    ] {
        let error = outcome(folder, saved, resumed).unwrap_err();
        assert_eq!(format!("{error:#}"), said);
    }
}

#[test]
fn time_that_is_none_is_told() {
    let saved = Saved::new();
    let error = open(&saved.path()).unwrap().time().unwrap_err();
    assert!(matches!(error, OpenError::Content { .. }), "{error}");
    assert!(error.to_string().contains(TIME_FILE), "{error}");
}

#[test]
fn a_machine_of_another_size_is_refused() {
    let saved = Saved::new();
    for ranges in [&RANGES[..1], &[(RANGES[0].0, 0x1000), RANGES[1]]] {
        let memory = GuestMemoryMmap::from_ranges(ranges).unwrap();
        let snapshot = open(&saved.path()).unwrap();
        let error = snapshot.load(&memory, &mut |_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Memory { .. }), "{error}");
    }
}

#[test]
fn files_that_do_not_agree_are_refused() {
    let content = |saved: &Saved, file: &str| match saved.refused() {
        OpenError::Content { path, .. } => assert_eq!(path, saved.file(file)),
        error => panic!("{error}"),
    };
    let saved = Saved::new();
    saved.rewrite(|manifest| manifest.facts.vcpus = 2);
    content(&saved, MACHINE_FILE);

    let saved = Saved::new();
    saved.rewrite(|manifest| manifest.facts.memory_bytes += 1);
    content(&saved, INDEX_FILE);

    let saved = Saved::new();
    let json = b"{\"vcpus\": []}";
    fs::write(saved.file(MACHINE_FILE), json).unwrap();
    saved.rewrite(|manifest| manifest.machine = Section::of(json));
    content(&saved, MACHINE_FILE);
}

#[test]
fn a_place_that_is_taken_stays_as_it_is() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("taken");
    // Refused before anything is written.
    check_place(&path).unwrap();
    let error = check_place(&path.join("within")).unwrap_err();
    assert!(matches!(error, SaveError::Write { .. }), "{error}");
    let refused = || {
        let error = save_with(&FailingDisk::new(0, true), &path).unwrap_err();
        assert!(matches!(error, SaveError::Exists { .. }), "{error}");
        let error = check_place(&path).unwrap_err();
        assert!(matches!(error, SaveError::Exists { .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    };
    fs::write(&path, "file").unwrap();
    refused();
    assert_eq!(fs::read(&path).unwrap(), b"file");
    fs::remove_file(&path).unwrap();
    symlink("/nonexistent", &path).unwrap();
    refused();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn an_interrupted_snapshot_is_in_the_way_and_named() {
    let folder = TempDir::new().unwrap();
    let partial = folder.path().join("snapshot.partial");
    fs::create_dir(&partial).unwrap();
    let path = folder.path().join("snapshot");
    let error = save_with(&FileSystem, &path).unwrap_err();
    assert!(
        matches!(&error, SaveError::Unfinished { path } if *path == partial),
        "{error}"
    );
    assert!(!path.exists());
    fs::remove_dir(&partial).unwrap();
    save_with(&FileSystem, &path).unwrap();
    restore(&path).unwrap();
}

#[test]
fn what_follows_the_name_does_not_matter() {
    for end in ["", "/", "/."] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("snapshot");
        let named = format!("{}{end}", path.display());
        save_with(&FileSystem, Path::new(&named)).unwrap();
        restore(&path).unwrap();
    }
}

#[test]
fn paths_that_name_nothing_new_are_refused() {
    for path in ["/", "..", "a/.."] {
        let error = save_with(&FileSystem, Path::new(path)).unwrap_err();
        assert!(matches!(error, SaveError::NoName { .. }), "{error}");
    }
    let error = save_with(&FileSystem, Path::new("/nonexistent/snapshot")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write /nonexistent/snapshot.partial: No such file or directory (os error 2); \
         choose a folder that can be written and has room"
    );
}

/// Whatever the writer was doing when it was killed or power was lost: what is at the snapshot's
/// place is a whole one, and after success there is one. What is beside it is whole or refused.
#[test]
fn a_writer_that_ends_at_any_operation_leaves_nothing_that_is_not_whole() {
    for end in [End::Killed, End::PowerLost, End::PowerLostWithRenames] {
        let mut is_saved = false;
        for fails_at in 0.. {
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("snapshot");
            let disk = FailingDisk::new(fails_at, true);
            let result = save_with(&disk, &path);
            is_saved = result.is_ok();
            disk.end(end);
            if is_saved || path.exists() {
                restore(&path).unwrap();
            }
            // Looks at the contents where there are any.
            let _ = restore(&folder.path().join("snapshot.partial"));
            if is_saved {
                assert!(fails_at > 20, "{fails_at} operations");
                break;
            }
        }
        assert!(is_saved);
    }
}

#[test]
fn a_writer_that_fails_at_any_operation_cleans_up_and_says_where() {
    for fails_at in 0.. {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("snapshot");
        match save_with(&FailingDisk::new(fails_at, false), &path) {
            Ok(()) => break,
            Err(SaveError::Write { path, source }) => {
                assert!(path.starts_with(folder.path()), "{path:?}");
                assert_eq!(source.to_string(), "the disk fails");
            }
            Err(error) => panic!("{error}"),
        }
        assert!(!folder.path().join("snapshot.partial").exists());
        // It is there where only its entry may not be on the disk.
        if path.exists() {
            restore(&path).unwrap();
        }
    }
}
