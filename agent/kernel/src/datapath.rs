//! The running instance: what the rest of the agent talks to.

use std::{
    collections::HashSet,
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sluice_abi::{map, program};

use crate::{
    CaptureState, Diagnostics, DirectFill, Enrolled, Error, GuardState, Kubelet, PeerFill, Placed,
    PodCounters, PodExemptions, PodHooks, ProgramReport, Removed, Report, Settings, SocketTable,
    enrol::{self, Enrolment},
    exempt::{Exempt, change_settings},
    features::Features,
    guard::{self, Filter},
    hooks,
    instance::Instance,
    load::{self, Loaded},
    peers::Peers,
    pins::{self, Pins},
    syscall,
    table::Tables,
};

/// One instance of the datapath, loaded and attached.
///
/// Dropping it detaches nothing: enrolled pods stay captured, and their connections are refused
/// until the next agent adopts them. Calls that change the kernel's state take a lock;
/// [`Datapath::sockets`] needs none.
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
    exempt: Exempt,
}

impl Datapath {
    /// Loads the programs, adopts or creates the maps, and attaches the node-wide hooks.
    ///
    /// Pods that the previous agent enrolled are captured throughout; their programs are replaced
    /// under their links. The peers are still those of the previous agent: set them before enrolling.
    /// The calling thread must be in the network namespace of the pods' host veths. No other agent may
    /// be enrolling pods of this instance meanwhile: half an enrolment would be swept away as a
    /// leftover.
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
        let node = sluice_sys::Netns::current().map_err(Error::Node)?.cookie();
        change_settings(&tables, |settings| settings.with_node_cookie(node))?;
        let mut exempt = Exempt::read(&tables)?;
        hooks::attach(&loaded, &cgroup, &pins)?;
        let instance = Instance { pins, tables };
        instance.sweep()?;
        let enrolled = instance.enrolled()?;
        exempt.sweep(&instance.tables, &enrolled.iter().map(|pod| pod.slot).collect())?;
        take_over(&instance, &mut loaded, enrolled)?;
        let state = Mutex::new(State { loaded, peers, exempt });
        Ok(Self { settings: settings.clone(), features, cgroup, instance, sockets, state })
    }

    /// Loads and verifies the programs without attaching anything, and leaves nothing behind.
    pub fn verify_only(settings: &Settings) -> Result<Report, Error> {
        let features = Features::probe(&settings.without);
        let loaded = load::load(settings, features, None)?;
        report(&loaded, features, |_| None)
    }

    /// Returns the programs, maps and fallbacks of this instance.
    pub fn report(&self) -> Result<Report, Error> {
        report(&self.lock().loaded, self.features, |name| {
            Some(if hooks::attach_type(name).is_some() {
                self.instance.pins.hook(name)
            } else {
                self.instance.pins.root().join("pod")
            })
        })
    }

    /// Returns the names of the node-wide programs that the kernel says are not in effect.
    pub fn missing_hooks(&self) -> Result<Vec<&'static str>, Error> {
        hooks::missing(&self.lock().loaded.programs, self.cgroup.as_fd())
    }

    /// Enrols a pod, or moves an enrolled one to other sockets, addresses or interfaces without a
    /// gap. A fresh enrolment that fails leaves nothing of the pod behind.
    ///
    /// The listeners must be marked first ([`SocketTable::mark_listener`]).
    pub fn enroll(&self, pod: &PodHooks<'_>) -> Result<Placed, Error> {
        self.enrolment(&mut self.lock()).enroll(pod)
    }

    /// Changes an enrolled pod's exemptions while it stays captured. If that fails, the pod has
    /// fewer exemptions than it should, never more.
    ///
    /// The calling thread must be in the network namespace of the pods' host veths.
    pub fn exempt(&self, cookie: u64, exemptions: &PodExemptions) -> Result<(), Error> {
        self.enrolment(&mut self.lock()).exempt(cookie, exemptions)
    }

    fn enrolment<'a>(&'a self, state: &'a mut State) -> Enrolment<'a> {
        Enrolment {
            instance: &self.instance,
            loaded: &mut state.loaded,
            exempt: &mut state.exempt,
            features: self.features,
            max_pods: self.settings.max_pods,
        }
    }

    /// Withdraws a pod, also one whose namespace is gone: what it sends from now on is its own
    /// business. Its established connections through the agent are the agent's to close.
    ///
    /// When that fails half way, the pod is still enrolled, its connections are refused, and withdrawing it again
    /// does the rest.
    pub fn withdraw(&self, cookie: u64) -> Result<(), Error> {
        let mut state = self.lock();
        if !self.instance.cookies()?.contains(&cookie) {
            return Err(Error::NotEnrolled(cookie));
        }
        if let Some(pod) = self.instance.tables.pods.get(&cookie)? {
            state.exempt.forget(&self.instance.tables, pod.slot())?;
        }
        self.instance.withdraw(cookie, &[]).map(drop)
    }

    /// Returns the enrolled pods, including those that an earlier agent enrolled.
    pub fn enrolled(&self) -> Result<Vec<Enrolled>, Error> {
        let _state = self.lock();
        self.instance.enrolled()
    }

    /// Sets the destinations that the mesh knows: addresses of its pods and services.
    ///
    /// If they do not fit, every destination is captured so that none is missed. Warn the operator
    /// as soon as [`PeerFill::nearly_full`] is true.
    pub fn set_peers(&self, peers: &HashSet<IpAddr>) -> Result<PeerFill, Error> {
        self.lock().peers.set(&self.instance.tables, peers)
    }

    /// Sets the destinations, each an address and port, that every pod reaches without the mesh. Those
    /// that do not fit are reached through it.
    pub fn set_direct(&self, destinations: &[SocketAddr]) -> Result<DirectFill, Error> {
        self.lock().exempt.set_direct(&self.instance.tables, destinations)
    }

    /// Sets who the kubelet is, whose probes pods may take in plaintext; `None` means nobody. Until
    /// this is called, the previous value holds, even one that an earlier agent set.
    pub fn set_kubelet(&self, kubelet: Option<Kubelet>) -> Result<(), Error> {
        let kubelet = kubelet.map(|kubelet| match kubelet {
            Kubelet::Cgroup(cgroup) => sluice_abi::Kubelet::Cgroup(cgroup),
            Kubelet::Process { id, believed_for } => {
                let until = syscall::boot_time().saturating_add(believed_for).as_nanos();
                let until = u64::try_from(until).unwrap_or(u64::MAX);
                sluice_abi::Kubelet::Process { id, until }
            }
        });
        let _state = self.lock();
        change_settings(&self.instance.tables, |settings| settings.with_kubelet(kubelet))
    }

    /// The table of the agent's sockets.
    pub fn sockets(&self) -> SocketTable {
        self.sockets.clone()
    }

    /// Returns what the kernel has counted for a pod since it was enrolled.
    pub fn counters(&self, cookie: u64) -> Result<PodCounters, Error> {
        let pod = self.instance.tables.pods.get(&cookie)?.ok_or(Error::NotEnrolled(cookie))?;
        self.instance.tables.counters(pod.slot())
    }

    /// Returns the kernel's counts that belong to no enrolled pod: drops for unknown addresses and
    /// interfaces.
    pub fn unattributed(&self) -> Result<PodCounters, Error> {
        self.instance.tables.counters(sluice_abi::UNATTRIBUTED)
    }

    /// Asks the kernel whether a pod is captured: what is in effect now, not what was once
    /// attached. The calling thread must be in the network namespace of the pod's host veths.
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
                unprobed: Vec::new(),
            });
        };
        let is_probed = pod.exemptions().has(sluice_abi::Exemptions::PROBES);
        let mut unprobed = Vec::new();
        let mut guards = Vec::new();
        let slot = pod.slot();
        for ifindex in self.instance.tables.guarded.keys_where(|guarded| guarded.slot == slot)? {
            let attached = self.has(Filter::Guard, loaded, ifindex)?;
            guards.push(GuardState { ifindex, attached });
            if is_probed && !self.has(Filter::Probe, loaded, ifindex)? {
                unprobed.push(ifindex);
            }
        }
        Ok(CaptureState { missing_hooks, enrolled: true, inbound, guards, unprobed })
    }

    fn has(&self, filter: Filter, loaded: &mut Loaded, ifindex: u32) -> Result<bool, Error> {
        if self.features.tcx {
            guard::has_tcx(filter, loaded.program(filter.program())?, ifindex)
        } else {
            guard::has_clsact(filter, &mut loaded.ebpf, ifindex)
        }
    }

    /// Takes the reader of the kernel programs' own diagnostics. Returns `None` the second time.
    pub fn diagnostics(&self) -> Result<Option<Diagnostics>, Error> {
        Diagnostics::take(&mut self.lock().loaded.ebpf)
    }

    /// The pods that generations of another shape (another ABI version or other map sizes) still capture and this
    /// one does not. Their addresses and interfaces are known where the maps have the same types.
    pub fn predecessors(&self) -> Result<Vec<Enrolled>, Error> {
        let _state = self.lock();
        let ours = self.instance.tables.pods.keys()?;
        let mut found = Vec::new();
        for pins in self.older_generations()? {
            let Some(tables) = Tables::open(&pins)? else { continue };
            let older = Instance { pins, tables };
            let known = older.enrolled()?;
            for cookie in older.cookies()?.into_iter().filter(|cookie| !ours.contains(cookie)) {
                let pod = known.iter().find(|pod| pod.cookie == cookie);
                found.push(pod.cloned().unwrap_or(Enrolled { cookie, ..Enrolled::default() }));
            }
        }
        Ok(found)
    }

    /// Takes down what generations of another shape left, but for the pods in `spared` that are not enrolled here:
    /// as long as there is one, it stays captured by its generation, whose agent has gone, and so is refused.
    pub fn retire_predecessors(&self, spared: &HashSet<u64>) -> Result<Removed, Error> {
        let _state = self.lock();
        let guarded = self.instance.tables.guarded.keys()?;
        let ours = self.instance.tables.pods.keys()?;
        let spared = spared.iter().copied().filter(|cookie| !ours.contains(cookie)).collect();
        let mut removed = Removed::default();
        for pins in self.older_generations()? {
            removed = removed.plus(remove_generation(pins, &guarded, &spared)?);
        }
        Ok(removed)
    }

    fn older_generations(&self) -> Result<Vec<Pins>, Error> {
        let mut all = Pins::generations(&self.settings.bpffs, &self.settings.instance)?;
        all.retain(|pins| pins.root() != self.instance.pins.root());
        Ok(all)
    }

    /// Removes everything of this instance from the kernel, as [`Datapath::remove`] does. Nothing else may be done
    /// with it afterwards.
    pub fn take_down(&self) -> Result<Removed, Error> {
        let _state = self.lock();
        Self::remove(&self.settings.bpffs, &self.settings.instance)
    }

    /// Puts this agent's programs under the node-wide links again, and attaches and pins anew what was taken away: by
    /// another agent whose attempt to take over has failed, or by somebody who removed files below the bpffs. An
    /// audit shows which pods lost their own hooks; those have to be enrolled again.
    pub fn reattach(&self) -> Result<(), Error> {
        let mut state = self.lock();
        self.instance.pins.create()?;
        load::pin_maps(&state.loaded, &self.instance.pins)?;
        hooks::attach(&state.loaded, &self.cgroup, &self.instance.pins)?;
        state.peers = Peers::read(&self.instance.tables, self.settings.max_peers)?;
        state.exempt = Exempt::read(&self.instance.tables)?;
        Ok(())
    }

    /// Removes everything of an instance from the kernel: its pods are no longer captured.
    ///
    /// The calling thread must be in the network namespace of the pods' host veths.
    pub fn remove(bpffs: &Path, instance: &str) -> Result<Removed, Error> {
        Settings::check_instance(instance)?;
        if !pins::is_bpffs(bpffs) {
            return Ok(Removed::default());
        }
        let mut removed = Removed::default();
        for pins in Pins::generations(bpffs, instance)? {
            removed = removed.plus(remove_generation(pins, &[], &HashSet::new())?);
        }
        pins::remove_instance(bpffs, instance)?;
        Ok(removed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Poisoning is harmless: the lock guards the kernel's state, which every step leaves
        // usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts this agent's programs under the links of the pods that it finds enrolled.
fn take_over(
    instance: &Instance,
    loaded: &mut Loaded,
    enrolled: Vec<Enrolled>,
) -> Result<(), Error> {
    for pod in enrolled {
        let pins = &instance.pins;
        hooks::update(&pins.inbound(pod.cookie), loaded.program(program::INBOUND)?)?;
        let entry = instance.tables.pods.get(&pod.cookie)?;
        let is_probed =
            entry.is_some_and(|pod| pod.exemptions().has(sluice_abi::Exemptions::PROBES));
        let filters: &[Filter] =
            if is_probed { &[Filter::Guard, Filter::Probe] } else { &[Filter::Guard] };
        for (ifindex, filter) in
            pod.guard_ifindexes.iter().flat_map(|index| filters.iter().map(move |f| (*index, *f)))
        {
            let pin = filter.pin(pins, pod.cookie, ifindex);
            let is_link = pin.exists();
            if is_link {
                hooks::update(&pin, loaded.program(filter.program())?)?;
            } else if let Err(error) = guard::attach_clsact(filter, &mut loaded.ebpf, ifindex) {
                // The interface may be gone with its pod. The caller will notice and withdraw the
                // pod.
                let program = filter.program();
                tracing::warn!(cookie = pod.cookie, ifindex, program, %error, "not taken over");
            }
        }
    }
    Ok(())
}

fn remove_generation(pins: Pins, keep: &[u32], spared: &HashSet<u64>) -> Result<Removed, Error> {
    if let Some(tables) = Tables::open(&pins)? {
        return Instance { pins, tables }.remove(keep, spared);
    }
    // Without all its maps this generation has captured nothing, and its links can go without them.
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
        program::PROBE if features.tcx => "tcx egress of each probed pod's host veth".to_owned(),
        program::PROBE => "clsact egress of each probed pod's host veth".to_owned(),
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
