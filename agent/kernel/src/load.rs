//! Loads the programs into the kernel: tunables, maps, verifier.

use std::os::fd::{AsFd, OwnedFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo},
    programs::{Program, ProgramError},
};
use sluice_abi::{MAX_WORKERS, map, program, tunable};

use crate::{
    Error, MapReport, Settings, bytecode, exempt, features::Features, pins::Pins, syscall, table,
};

/// Programs in the order in which they are loaded and their hooks attached. Those that show an
/// application its peer and itself come first, those that capture come last.
pub(crate) const PROGRAMS: [&str; 10] = [
    program::PEERNAME4,
    program::PEERNAME6,
    program::SOCKNAME4,
    program::SOCKNAME6,
    program::SOCKOPS,
    program::INBOUND,
    program::GUARD,
    program::PROBE,
    program::CONNECT4,
    program::CONNECT6,
];

/// A program in the kernel.
#[derive(Debug)]
pub(crate) struct LoadedProgram {
    pub(crate) name: &'static str,
    pub(crate) fd: OwnedFd,
    pub(crate) id: u32,
    /// Instructions that the verifier walked.
    pub(crate) verified: u32,
    /// Instructions that run.
    pub(crate) instructions: u32,
}

/// The loaded object.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) ebpf: Ebpf,
    pub(crate) programs: Vec<LoadedProgram>,
}

impl Loaded {
    pub(crate) fn program(&self, name: &'static str) -> Result<&LoadedProgram, Error> {
        self.programs.iter().find(|program| program.name == name).ok_or(Error::Incomplete(name))
    }

    /// Returns a descriptor of a map, owned by the caller.
    pub(crate) fn map(&self, name: &'static str) -> Result<OwnedFd, Error> {
        let map = self.ebpf.map(name).and_then(data).ok_or(Error::Incomplete(name))?;
        map.fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::kernel("duplicate the descriptor of", name))
    }

    /// Returns names, sizes and memory of the maps.
    pub(crate) fn map_reports(&self) -> Result<Vec<MapReport>, Error> {
        let mut reports = Vec::new();
        for (name, ..) in table::sizes() {
            let map = self.ebpf.map(name).and_then(data).ok_or(Error::Incomplete(name))?;
            let info =
                map.info().map_err(|source| Error::Map { map: name, source: Box::new(source) })?;
            // As the kernel accounts for it.
            let bytes = syscall::map::info(map.fd().as_fd(), "memlock")
                .map_err(Error::kernel("read the memory of map", name))?;
            reports.push(MapReport { name, entries: info.max_entries(), bytes });
        }
        Ok(reports)
    }
}

/// Loads and verifies the programs. With `pins`, maps that are already pinned there are used, and
/// the others are created and pinned there.
pub(crate) fn load(
    settings: &Settings,
    features: Features,
    pins: Option<&Pins>,
) -> Result<Loaded, Error> {
    let object = bytecode::object()?;
    let (set_retval, mptcp) = (u8::from(features.set_retval), u8::from(features.mptcp));
    let log = settings.log.byte();
    let mut loader = EbpfLoader::new();
    loader
        // Nothing in the object is relocated against the kernel's types, and reading those takes
        // long.
        .btf(None)
        .override_global(tunable::HAS_SET_RETVAL, &set_retval, true)
        .override_global(tunable::HAS_MPTCP, &mptcp, true)
        .override_global(tunable::LOG_LEVEL, &log, true);
    for (name, entries) in entries(settings) {
        loader.map_max_entries(name, entries);
    }
    if let Some(pins) = pins {
        for (name, key, value) in table::sizes() {
            check_pinned(pins, name, key, value)?;
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader.load(object).map_err(|source| Error::Load(Box::new(source)))?;
    let mut programs = Vec::with_capacity(PROGRAMS.len());
    for name in PROGRAMS {
        programs.push(verify(&mut ebpf, name)?);
    }
    Ok(Loaded { ebpf, programs })
}

/// Restores the pins of maps that somebody has removed; the next agent finds the maps by them.
pub(crate) fn pin_maps(loaded: &Loaded, pins: &Pins) -> Result<(), Error> {
    for (name, ..) in table::sizes() {
        let path = pins.map(name);
        if !path.exists() {
            let map = loaded.map(name)?;
            syscall::pin(map.as_fd(), &path).map_err(Error::path("pin a map at", path))?;
        }
    }
    Ok(())
}

/// Sizes of the maps, where the loader sets them. A pod has about two addresses and one veth; there
/// is room for four of each.
fn entries(settings: &Settings) -> [(&'static str, u32); 9] {
    let slots = settings.max_pods.saturating_add(1);
    let several = settings.max_pods.saturating_mul(4);
    [
        (map::PODS, settings.max_pods),
        (map::PEERS, settings.max_peers),
        (map::LOCAL, several),
        (map::GUARDED, several),
        (map::LISTENERS, slots.saturating_mul(MAX_WORKERS * 2)),
        (map::COUNTERS, slots),
        (map::PORTS, settings.max_pods.saturating_mul(exempt::PORTS_PER_POD)),
        (map::NETWORKS, settings.max_pods.saturating_mul(exempt::NETWORKS_PER_POD)),
        (map::DIRECT, exempt::DIRECT),
    ]
}

fn check_pinned(pins: &Pins, name: &'static str, key: usize, value: usize) -> Result<(), Error> {
    let path = pins.map(name);
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&path)
        .map_err(|source| Error::Map { map: name, source: Box::new(source) })?;
    let fits = |has: u32, wanted: usize| usize::try_from(has).is_ok_and(|has| has == wanted);
    if fits(info.key_size(), key) && fits(info.value_size(), value) {
        Ok(())
    } else {
        Err(Error::ForeignMap { map: name, key: info.key_size(), value: info.value_size() })
    }
}

fn verify(ebpf: &mut Ebpf, name: &'static str) -> Result<LoadedProgram, Error> {
    /// Bytes of one instruction.
    const INSTRUCTION: u32 = 8;
    let refused = |source| Error::Verify { program: name, source: Box::new(source) };
    let program = ebpf.program_mut(name).ok_or(Error::Incomplete(name))?;
    into_kernel(program).map_err(refused)?;
    let info = program.info().map_err(refused)?;
    let fd = program.fd().map_err(refused)?.as_fd().try_clone_to_owned();
    Ok(LoadedProgram {
        name,
        fd: fd.map_err(Error::kernel("duplicate the descriptor of", name))?,
        id: info.id(),
        verified: info.verified_instruction_count().unwrap_or_default(),
        instructions: info.size_translated().unwrap_or_default() / INSTRUCTION,
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the object has programs of four kinds; aya knows thirty"
)]
fn into_kernel(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the object has maps of seven kinds; aya knows thirty"
)]
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::SkStorage(data)
        | Map::SockMap(data) => Some(data),
        _ => None,
    }
}
