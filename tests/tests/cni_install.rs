//! The installer is killed before each of its system calls. Whoever reads the directory of network lists meanwhile, as
//! container runtimes do, always finds one that makes a pod's network.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use sluice_tests::{agent::sibling, full_size};

const LIST: &str = "{\n  \"name\": \"pods\",\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    {\"type\": \"main\", \"n\": 1.50},\n    {\"type\": \"portmap\"}\n  ]\n}\n";
const SINGLE: &str = "{\"cniVersion\": \"0.4.0\", \"name\": \"pods\", \"type\": \"main\"}\n";
/// The system calls that touch files; between two of them nothing on disk changes.
const CALLS: &str = "openat,write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,\
                     mkdirat,rmdir,fchmod,fchown,ftruncate,copy_file_range";

/// A node's directories, as a container runtime and the installer see them.
struct Node {
    root: PathBuf,
    file: &'static str,
    text: &'static str,
    runtime: &'static str,
}

impl Node {
    fn new(
        name: &str,
        file: &'static str,
        text: &'static str,
        runtime: &'static str,
    ) -> Result<Self> {
        let root = std::env::temp_dir().join(format!("sluice-{}-{name}", std::process::id()));
        let node = Self { root, file, text, runtime };
        node.reset()?;
        Ok(node)
    }

    /// Restores the directories to what the main plugin left.
    fn reset(&self) -> Result<()> {
        fs::create_dir_all(self.lists())?;
        fs::create_dir_all(self.root.join("bin"))?;
        // The order leaves no gap for a runtime to see: our files go last.
        fs::write(self.root.join("draft"), self.text)?;
        fs::rename(self.root.join("draft"), self.lists().join(self.file))?;
        for name in names(&self.lists())? {
            let path = self.lists().join(&name);
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else if name != self.file {
                fs::remove_file(path)?;
            }
        }
        // The main plugin is there already: beside it is where the runtime looks for ours.
        fs::write(self.root.join("bin/main"), "")?;
        for name in names(&self.root.join("bin"))? {
            if name != "main" {
                fs::remove_file(self.root.join("bin").join(name))?;
            }
        }
        Ok(())
    }

    fn lists(&self) -> PathBuf {
        self.root.join("net.d")
    }

    fn arguments(&self, command: &str, socket: &str) -> Vec<String> {
        let path = |name: &str| self.root.join(name).to_string_lossy().into_owned();
        let options =
            ["--config-dir", &path("net.d"), "--bin-dir", &path("bin"), "--socket", socket];
        let mut all = vec![command.to_owned()];
        all.extend(options.iter().map(|&option| option.to_owned()));
        all.extend(["--runtime".to_owned(), self.runtime.to_owned()]);
        all
    }

    fn run(&self, command: &str, socket: &str) -> Result<()> {
        let output =
            Command::new(sibling("sluice-cni")?).args(self.arguments(command, socket)).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Returns the system calls of a whole run, in order: the name, and which call of that name it is, counted from 1.
    fn calls(&self, command: &str, socket: &str) -> Result<Vec<(String, usize)>> {
        let log = self.root.join("strace");
        let status = self.traced(&["-o", &log.to_string_lossy()], command, socket)?;
        ensure!(status, "{command} failed under strace");
        let mut counts = HashMap::new();
        let text = fs::read_to_string(&log)?;
        let names = text.lines().filter_map(|line| line.split_once('(').map(|(name, _)| name));
        Ok(names
            .map(|name| {
                let count: &mut usize = counts.entry(name.to_owned()).or_default();
                *count += 1;
                (name.to_owned(), *count)
            })
            .collect())
    }

    /// Runs the installer under strace. Returns whether it ran to its end.
    fn traced(&self, options: &[&str], command: &str, socket: &str) -> Result<bool> {
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-e", &format!("trace={CALLS}")]).args(options);
        strace.arg(sibling("sluice-cni")?).args(self.arguments(command, socket));
        strace.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(strace.status().context("start strace: apt-get install strace")?.success())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.root).ok();
    }
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Returns what a runtime would load now: the types of the plugins, those of drop-ins included.
fn load(lists: &Path) -> Result<Option<Vec<String>>> {
    let is_list = |name: &String| {
        Path::new(name)
            .extension()
            .is_some_and(|suffix| ["conf", "conflist", "json"].iter().any(|known| suffix == *known))
    };
    let all = names(lists)?;
    let first = all.iter().find(|name| is_list(name)).context("there is no list at all")?;
    let text = match fs::read_to_string(lists.join(first)) {
        Ok(text) => text,
        // Gone between the two looks: a runtime would look again.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let list: Value = serde_json::from_str(&text).with_context(|| format!("{first}: {text:?}"))?;
    let kind = |plugin: &Value| {
        plugin.get("type").and_then(Value::as_str).map(str::to_owned).context("no type")
    };
    let mut types = match list.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins.iter().map(kind).collect::<Result<Vec<_>>>()?,
        None => vec![kind(&list)?],
    };
    ensure!(types.first().is_some_and(|first| first == "main"), "{types:?}");
    if first.ends_with(".conflist") {
        match fs::read_to_string(lists.join("pods/sluice-cni.conf")) {
            Ok(text) => types.push(kind(&serde_json::from_str(&text)?)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(types))
}

/// A runtime that reads the directory all the time.
struct Reader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    faults: Arc<Mutex<Vec<String>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reader {
    fn start(node: &Node) -> Self {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let faults = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let (stop, reads, faults) =
                (Arc::clone(&stop), Arc::clone(&reads), Arc::clone(&faults));
            let (lists, binary) = (node.lists(), node.root.join("bin/sluice-cni"));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let fault = look(&lists, &binary);
                    faults.lock().unwrap_or_else(PoisonError::into_inner).extend(fault);
                    reads.fetch_add(1, Ordering::Relaxed);
                    // Leaves the processor to the installer now and then.
                    thread::sleep(Duration::from_micros(50));
                }
            }
        });
        Self { stop, reads, faults, thread: Some(thread) }
    }

    fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_panic| anyhow!("the reader panicked"))?;
        }
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let reads = self.reads.load(Ordering::Relaxed);
        ensure!(faults.is_empty(), "{} of {reads} reads: {:?}", faults.len(), faults.first());
        Ok(reads)
    }
}

/// Returns what is wrong. A list that is broken once is broken. An entry without its binary may be seen between two
/// steps of the test itself, which takes both away, and is looked at twice.
fn look(lists: &Path, binary: &Path) -> Option<String> {
    let mut found = None;
    for _ in 0..2 {
        found = match load(lists) {
            Ok(types) => fault(&types?, binary),
            Err(error) => return Some(format!("{error:#}")),
        };
        found.as_ref()?;
    }
    found
}

/// Returns what is wrong with a list that has our entry: it is not at the end, or there is no binary to call.
fn fault(types: &[String], binary: &Path) -> Option<String> {
    let ours = types.iter().filter(|kind| *kind == "sluice-cni").count();
    let is_last = types.last().is_some_and(|last| last == "sluice-cni");
    if ours > 0 && !binary.is_file() {
        return Some(format!("{types:?} without a binary"));
    }
    (ours > 1 || ours == 1 && !is_last).then(|| format!("not once at the end: {types:?}"))
}

/// Kills the installer once at each step of install, upgrade and uninstall.
fn killed_at_each_step(node: &Node) -> Result<()> {
    let entered = |node: &Node| -> Result<bool> {
        let types = load(&node.lists())?.context("the list is gone")?;
        Ok(types.last().is_some_and(|last| last == "sluice-cni"))
    };
    let reader = Reader::start(node);
    let mut kills = 0;
    for (command, socket) in
        [("install", "/old.sock"), ("install", "/new.sock"), ("uninstall", "/x")]
    {
        // Restores what the phase before left; called anew before each kill.
        let prepare = || -> Result<()> {
            node.reset()?;
            if socket != "/old.sock" {
                node.run("install", "/old.sock")?;
            }
            Ok(())
        };
        prepare()?;
        for (call, count) in node.calls(command, socket)? {
            prepare()?;
            let inject = format!("inject={call}:signal=SIGKILL:when={count}");
            let finished = node.traced(&["-o", "/dev/null", "-e", &inject], command, socket)?;
            ensure!(!finished, "it was not killed at {call} {count}");
            kills += 1;
            load(&node.lists())?;
            // Whatever the killed run left, the next one completes it.
            node.run(command, socket)?;
            ensure!(entered(node)? == (command == "install"), "{command} after {call} {count}");
            let left = names(&node.lists())?;
            ensure!(!left.iter().any(|name| name.contains(".draft")), "{left:?}");
            if command == "uninstall" {
                // An empty directory means nothing to anybody and may be somebody else's.
                let is_file = |name: &&String| {
                    let is_empty = |path: &Path| names(path).is_ok_and(|names| names.is_empty());
                    !is_empty(&node.lists().join(name))
                };
                let files: Vec<_> = left.iter().filter(is_file).collect();
                ensure!(files == [node.file], "{left:?}");
                ensure!(fs::read_to_string(node.lists().join(node.file))? == node.text);
            }
        }
    }
    let reads = reader.finish()?;
    ensure!(kills > 30 && reads > kills, "{kills} kills, {reads} reads");
    Ok(())
}

#[test]
fn an_entry_in_a_list_survives_a_kill_at_each_step() -> Result<()> {
    killed_at_each_step(&Node::new("list", "10-main.conflist", LIST, "")?)
}

#[test]
fn a_single_plugin_survives_a_kill_at_each_step() -> Result<()> {
    killed_at_each_step(&Node::new("single", "10-main.conf", SINGLE, "")?)
}

#[test]
fn a_drop_in_survives_a_kill_at_each_step() -> Result<()> {
    killed_at_each_step(&Node::new("dropin", "10-main.conflist", LIST, "containerd://2.2.0")?)
}

#[test]
fn a_watch_puts_back_what_a_rival_takes_out_and_names_it() -> Result<()> {
    let node = Node::new("rival", "10-main.conflist", LIST, "")?;
    fs::remove_file(node.lists().join(node.file))?;
    let mut command = Command::new(sibling("sluice-cni")?);
    command.args(node.arguments("watch", "/s.sock")).stderr(Stdio::piped());
    let mut watch = command.spawn()?;
    let outcome = rival(&node);
    watch.kill()?;
    let said = watch.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stderr);
    outcome.with_context(|| format!("the watch said:\n{said}"))?;
    ensure!(said.contains("waiting for the main plugin"), "{said}");
    ensure!(said.contains("whose main plugin is main, was written without the entry"), "{said}");
    Ok(())
}

fn rival(node: &Node) -> Result<()> {
    let wait_until_entered = || -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !load(&node.lists())?
            .is_some_and(|types| types.iter().any(|kind| kind == "sluice-cni"))
        {
            ensure!(Instant::now() < deadline, "not put back");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    thread::sleep(Duration::from_millis(300));
    ensure!(names(&node.lists())?.is_empty(), "a list was made up");
    for _ in 0..3 {
        fs::write(node.root.join("draft"), LIST)?;
        fs::rename(node.root.join("draft"), node.lists().join(node.file))?;
        wait_until_entered()?;
    }
    Ok(())
}

#[test]
fn kills_at_any_moment_beside_a_rival_do_no_harm() -> Result<()> {
    let node = Node::new("moments", "10-main.conflist", LIST, "")?;
    let reader = Reader::start(&node);
    let rounds = if full_size() { 1000 } else { 100 };
    for round in 0..rounds {
        let command = if round % 3 == 2 { "uninstall" } else { "install" };
        let mut installer = Command::new(sibling("sluice-cni")?);
        installer.args(node.arguments(command, &format!("/{}.sock", round % 2)));
        let mut installer = installer.stderr(Stdio::null()).spawn()?;
        // Spread evenly over the few milliseconds that the installer takes.
        thread::sleep(Duration::from_micros(37 * (round % 150)));
        if round % 7 == 0 {
            fs::write(node.root.join("draft"), LIST)?;
            fs::rename(node.root.join("draft"), node.lists().join(node.file))?;
        }
        installer.kill()?;
        installer.wait()?;
    }
    node.run("install", "/end.sock")?;
    node.run("uninstall", "/end.sock")?;
    ensure!(fs::read_to_string(node.lists().join(node.file))? == LIST);
    reader.finish()?;
    Ok(())
}
