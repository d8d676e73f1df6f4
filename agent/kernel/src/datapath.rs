//! The running instance: what the rest of the agent talks to.

use std::{
    collections::HashSet,
    fs::File,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sluice_abi::{map, program};

use crate::{
    CaptureState, Diagnostics, Enrolled, Error, GuardState, PeerFill, PodCounters, PodHooks,
    ProgramReport, Removed, Report, Settings, SocketTable,
    enrol::{self, Enrolment},
    features::Features,
    guard, hooks,
    instance::Instance,
    load::{self, Loaded},
    peers::Peers,
    pins::{self, Pins},
    table::Tables,
};

/// One instance of the datapath, loaded and attached.
///
/// Dropping it detaches nothing: enrolled pods stay captured, and are refused until the next agent
/// adopts them. Calls that change the kernel's state take a lock; [`Datapath::sockets`] needs none.
#[derive(Debug)]
pub struct Datapath {
    settings: Settings,
    features: Features,
    cgroup: File,
    instance: Instance,
    sockets: SocketTable,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Loaded,
    peers: Peers,
}

impl Datapath {
    /// Loads the programs, adopts or creates the maps, and attaches the node-wide hooks.
    ///
    /// Pods that the previous agent enrolled are captured throughout; their programs are replaced
    /// under their links. The peers are still those of the previous agent: set them before enrolling.
    /// The calling thread must be in the network namespace of the pods' host veths, and no other agent
    /// may be enrolling pods of this instance meanwhile: half an enrolment is taken for a leftover.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        Settings::check_instance(&settings.instance)?;
        let cgroup = pins::open_cgroup(&settings.cgroup)?;
        pins::mount_bpffs(&settings.bpffs)?;
        let features = Features::probe(&settings.without);
        let pins = Pins::of(settings);
        pins.create()?;
        let mut loaded = load::load(settings, features, Some(&pins))?;
        let tables = Tables::new(|name| loaded.map(name))?;
        let sockets = SocketTable::new(loaded.map(map::SK_ORIG)?, loaded.map(map::AGENT_SK)?);
        let peers = Peers::read(&tables, settings.max_peers)?;
        hooks::attach(&loaded, &cgroup, &pins)?;
        let instance = Instance { pins, tables };
        instance.sweep()?;
        take_over(&instance, &mut loaded)?;
        let state = Mutex::new(State { loaded, peers });
        Ok(Self { settings: settings.clone(), features, cgroup, instance, sockets, state })
    }

    /// Loads and verifies the programs, attaches nothing and leaves nothing behind.
    pub fn verify_only(settings: &Settings) -> Result<Report, Error> {
        let features = Features::probe(&settings.without);
        let loaded = load::load(settings, features, None)?;
        report(&loaded, features, |_| None)
    }

    /// The programs, maps and fallbacks of this instance.
    pub fn report(&self) -> Result<Report, Error> {
        report(&self.lock().loaded, self.features, |name| {
            Some(if hooks::attach_type(name).is_some() {
                self.instance.pins.hook(name)
            } else {
                self.instance.pins.root().join("pod")
            })
        })
    }

    /// Enrols a pod, or moves an enrolled one to other sockets, addresses or interfaces without a
    /// gap. Returns its slot. A fresh enrolment that fails leaves nothing of the pod behind.
    ///
    /// The listeners must be marked ([`SocketTable::mark_listener`]) before.
    pub fn enroll(&self, pod: &PodHooks<'_>) -> Result<u32, Error> {
        let mut state = self.lock();
        let mut enrolment = Enrolment {
            instance: &self.instance,
            loaded: &mut state.loaded,
            features: self.features,
            max_pods: self.settings.max_pods,
        };
        enrolment.enroll(pod)
    }

    /// Withdraws a pod, also one whose namespace is gone: what it sends from now on is its own
    /// business. Its established connections through the agent are the agent's to close.
    pub fn withdraw(&self, cookie: u64) -> Result<(), Error> {
        let _state = self.lock();
        if self.instance.tables.pods.get(&cookie)?.is_none() {
            return Err(Error::NotEnrolled(cookie));
        }
        self.instance.withdraw(cookie, &[]).map(drop)
    }

    /// The pods that are enrolled, also by the agent before this one.
    pub fn enrolled(&self) -> Result<Vec<Enrolled>, Error> {
        let _state = self.lock();
        self.instance.enrolled()
    }

    /// Sets the destinations that the mesh knows: addresses of its pods and services.
    ///
    /// When they do not fit, every destination is captured, so that none is missed; warn the
    /// operator from [`PeerFill::nearly_full`] on.
    pub fn set_peers(&self, peers: &HashSet<IpAddr>) -> Result<PeerFill, Error> {
        self.lock().peers.set(&self.instance.tables, peers)
    }

    /// The table of the agent's sockets.
    pub fn sockets(&self) -> SocketTable {
        self.sockets.clone()
    }

    /// What the kernel counted for a pod since it was enrolled.
    pub fn counters(&self, cookie: u64) -> Result<PodCounters, Error> {
        let pod = self.instance.tables.pods.get(&cookie)?.ok_or(Error::NotEnrolled(cookie))?;
        self.instance.tables.counters(pod.slot())
    }

    /// What the kernel counted that belongs to no enrolled pod: drops for addresses and interfaces
    /// that are nobody's.
    pub fn unattributed(&self) -> Result<PodCounters, Error> {
        self.instance.tables.counters(sluice_abi::UNATTRIBUTED)
    }

    /// Asks the kernel whether a pod is captured: what is in effect, not what was once attached.
    /// The calling thread must be in the network namespace of the pod's host veths.
    pub fn audit(&self, cookie: u64, netns: BorrowedFd<'_>) -> Result<CaptureState, Error> {
        let mut state = self.lock();
        let loaded = &mut state.loaded;
        let missing_hooks = hooks::missing(&loaded.programs, self.cgroup.as_fd())?;
        let inbound = enrol::inbound_link(&self.instance.pins, cookie, netns)?;
        let inbound = inbound == Some(loaded.program(program::INBOUND)?.id);
        let Some(pod) = self.instance.tables.pods.get(&cookie)? else {
            return Ok(CaptureState {
                missing_hooks,
                enrolled: false,
                inbound,
                guards: Vec::new(),
            });
        };
        let mut guards = Vec::new();
        for ifindex in self.instance.tables.guarded.keys_where(|slot| *slot == pod.slot())? {
            let attached = if self.features.tcx {
                guard::has_tcx(loaded.program(program::GUARD)?, ifindex)?
            } else {
                guard::has_clsact(&mut loaded.ebpf, ifindex)?
            };
            guards.push(GuardState { ifindex, attached });
        }
        Ok(CaptureState { missing_hooks, enrolled: true, inbound, guards })
    }

    /// Takes the reader of the kernel programs' own diagnostics; `None` the second time.
    pub fn diagnostics(&self) -> Result<Option<Diagnostics>, Error> {
        Diagnostics::take(&mut self.lock().loaded.ebpf)
    }

    /// Takes down what generations of another shape left (another ABI version or other map sizes),
    /// once every pod is enrolled here. Until then both capture, and what the old one captures is
    /// refused.
    pub fn retire_predecessors(&self) -> Result<Removed, Error> {
        let _state = self.lock();
        let ours = self.instance.tables.guarded.keys()?;
        let mut removed = Removed::default();
        for pins in Pins::generations(&self.settings.bpffs, &self.settings.instance)? {
            if pins.root() != self.instance.pins.root() {
                removed = removed.plus(remove_generation(pins, &ours)?);
            }
        }
        Ok(removed)
    }

    /// Removes everything of an instance from the kernel: its pods are captured no more.
    ///
    /// The calling thread must be in the network namespace of the pods' host veths.
    pub fn remove(bpffs: &Path, instance: &str) -> Result<Removed, Error> {
        Settings::check_instance(instance)?;
        if !pins::is_bpffs(bpffs) {
            return Ok(Removed::default());
        }
        let mut removed = Removed::default();
        for pins in Pins::generations(bpffs, instance)? {
            removed = removed.plus(remove_generation(pins, &[])?);
        }
        pins::remove_instance(bpffs, instance)?;
        Ok(removed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What the lock guards is the kernel's state, and every step leaves that usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts this agent's programs under the links of the pods that it finds enrolled.
fn take_over(instance: &Instance, loaded: &mut Loaded) -> Result<(), Error> {
    for pod in instance.enrolled()? {
        let pins = &instance.pins;
        hooks::update(&pins.inbound(pod.cookie), loaded.program(program::INBOUND)?)?;
        for ifindex in pod.guard_ifindexes {
            let pin = pins.guard(pod.cookie, ifindex);
            let is_link = pin.exists();
            if is_link {
                hooks::update(&pin, loaded.program(program::GUARD)?)?;
            } else if let Err(error) = guard::attach_clsact(&mut loaded.ebpf, ifindex) {
                // The interface may be gone with its pod, which the caller will find and withdraw.
                tracing::warn!(cookie = pod.cookie, ifindex, %error, "guard not taken over");
            }
        }
    }
    Ok(())
}

fn remove_generation(pins: Pins, keep: &[u32]) -> Result<Removed, Error> {
    if let Some(tables) = Tables::open(&pins)? {
        return Instance { pins, tables }.remove(keep);
    }
    // It never got as far as capturing anything: its links need no maps to go.
    let mut removed = Removed::default();
    for name in load::PROGRAMS {
        removed.links += usize::from(pins::remove_link(&pins.hook(name))?);
    }
    removed.maps = pins.remove()?;
    Ok(removed)
}

fn report(
    loaded: &Loaded,
    features: Features,
    pin: impl Fn(&'static str) -> Option<std::path::PathBuf>,
) -> Result<Report, Error> {
    let attach_point = |name| match name {
        program::INBOUND => "network namespace of each enrolled pod".to_owned(),
        program::GUARD if features.tcx => "tcx ingress of each enrolled pod's host veth".to_owned(),
        program::GUARD => "clsact ingress of each enrolled pod's host veth".to_owned(),
        _ => "cgroup".to_owned(),
    };
    let programs = loaded.programs.iter().map(|program| ProgramReport {
        name: program.name,
        id: program.id,
        verified_instructions: program.verified,
        instructions: program.instructions,
        attach_point: attach_point(program.name),
        pin: pin(program.name),
    });
    Ok(Report {
        programs: programs.collect(),
        maps: loaded.map_reports()?,
        fallbacks: features.fallbacks(),
    })
}
