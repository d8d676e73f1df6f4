//! Puts together what the files and the CA say, with the last good content of whatever is bad.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_saphyr::Spanned;
use sluice_spiffe::TrustDomain;
use sluice_tls::{
    CertificateDer, Clock, Crl, CrlError, CrlPolicy, DenyList, Revocations, RootError, TrustBundle,
    certificates_of_pem,
};

use super::{TrustFault, TrustFiles, files::Content};
use crate::Delivered;

pub(super) const LAST_GOOD_STAYS: &str = "the last good content stays in force";
const NOTHING_KNOWN: &str = "no good content is known yet";
const REFUSED: &str = "crlPolicy refuse: nobody is believed whom it could be about";

/// A fault and what follows from it.
pub(super) type Told = (Arc<TrustFault>, &'static str);

pub(super) struct State {
    files: TrustFiles,
    own: TrustDomain,
    delivered: Delivered,
    clock: Arc<dyn Clock>,
    roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    denied: Arc<DenyList>,
    /// The last good lists of each file, and whether the file has gone bad since.
    crls: BTreeMap<PathBuf, (Vec<Arc<Crl>>, bool)>,
    /// The newest list of each issuer and scope so far: none may go back behind it.
    newest: Vec<Arc<Crl>>,
    /// What is wrong with the contents that were read last.
    bad: Vec<Told>,
    /// Why a list that was never good cannot be used.
    blind: Option<String>,
}

impl State {
    pub(super) fn new(
        files: TrustFiles,
        own: TrustDomain,
        delivered: Delivered,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            files,
            own,
            delivered,
            clock,
            roots: BTreeMap::new(),
            denied: Arc::default(),
            crls: BTreeMap::new(),
            newest: Vec::new(),
            bad: Vec::new(),
            blind: None,
        }
    }

    /// Returns the first state. Any fault is an error, because there is no last good state, except those of revocation
    /// lists, which follow their policy from the start.
    pub(super) fn begin(
        &mut self,
        contents: Vec<(PathBuf, Content)>,
    ) -> Result<(TrustBundle, Vec<Told>), Arc<TrustFault>> {
        self.take(contents);
        let is_list = |fault: &TrustFault| match fault {
            TrustFault::Unreadable { file, .. } => self.files.is_crl(file),
            TrustFault::Crl { .. } | TrustFault::Expired { .. } => true,
            TrustFault::Roots { .. }
            | TrustFault::Delivered(_)
            | TrustFault::Syntax { .. }
            | TrustFault::Denied { .. } => false,
        };
        if let Some(index) = self.bad.iter().position(|(fault, _)| !is_list(fault)) {
            return Err(self.bad.swap_remove(index).0);
        }
        let (bundle, faults) = self.evaluate();
        match bundle {
            Some(bundle) => Ok((bundle, faults)),
            None => Err(faults.into_iter().map(|(fault, _)| fault).next().unwrap_or_else(|| {
                Arc::new(TrustFault::Delivered(RootError::Empty(self.own.clone())))
            })),
        }
    }

    pub(super) fn deliver(&mut self, delivered: Delivered) {
        self.delivered = delivered;
    }

    /// Takes over what all files hold now.
    pub(super) fn take(&mut self, contents: Vec<(PathBuf, Content)>) {
        self.bad.clear();
        self.blind = None;
        self.crls.retain(|path, _| {
            // Below a directory that cannot be read nothing is known to have gone.
            let stays = contents.iter().any(|(looked_at, content)| {
                looked_at == path || (content.is_err() && path.starts_with(looked_at))
            });
            if !stays {
                tracing::warn!(file = %path.display(), "a revocation list was removed and is let go");
            }
            stays
        });
        for (path, content) in contents {
            if self.files.is_crl(&path) {
                self.take_crls(&path, content);
            } else if self.files.denied.as_ref() == Some(&path) {
                match content.map_err(unreadable(&path)).and_then(|text| deny_list(&path, &text)) {
                    Ok(list) => self.denied = Arc::new(list),
                    Err(fault) => self.bad.push((Arc::new(fault), LAST_GOOD_STAYS)),
                }
            } else {
                self.take_roots(&path, content);
            }
        }
    }

    fn take_roots(&mut self, path: &Path, content: Content) {
        let own = (self.files.roots.as_deref() == Some(path)).then_some(&self.own);
        let federated = self.files.federated.iter().filter(|(_, file)| file == path);
        let domains: Vec<_> =
            own.into_iter().chain(federated.map(|(domain, _)| domain)).cloned().collect();
        let content = content.map_err(unreadable(path));
        let roots = content.and_then(|pem| {
            let bad = |source| TrustFault::Roots { file: path.to_owned(), source };
            let roots = certificates_of_pem(&pem).map_err(bad)?;
            for domain in &domains {
                // Checked at once, so that bad roots never replace good ones.
                TrustBundle::new(domain.clone(), roots.clone()).map_err(bad)?;
            }
            Ok(roots)
        });
        match roots {
            Ok(roots) => {
                self.roots.extend(domains.into_iter().map(|domain| (domain, roots.clone())));
            }
            Err(fault) => self.bad.push((Arc::new(fault), LAST_GOOD_STAYS)),
        }
    }

    fn take_crls(&mut self, path: &Path, content: Content) {
        let read = content.map_err(unreadable(path)).and_then(|bytes| {
            Crl::read_all(&bytes)
                .map_err(|source| TrustFault::Crl { file: path.to_owned(), source })
        });
        match read {
            Ok(lists) => {
                let lists = lists.into_iter().map(|list| self.known(list)).collect();
                self.crls.insert(path.to_owned(), (lists, false));
            }
            Err(fault) => self.bad_crl(path, fault),
        }
    }

    /// Keeps what was good of a file, or of all files of a directory.
    fn bad_crl(&mut self, path: &Path, fault: TrustFault) {
        let mut consequence = NOTHING_KNOWN;
        for (_, (_, is_bad)) in self.crls.iter_mut().filter(|(file, _)| file.starts_with(path)) {
            *is_bad = true;
            consequence = LAST_GOOD_STAYS;
        }
        if consequence == NOTHING_KNOWN {
            self.blind = Some(fault.to_string());
        }
        let strict = self.files.crl_policy == CrlPolicy::Refuse;
        self.bad.push((Arc::new(fault), if strict { REFUSED } else { consequence }));
    }

    /// Returns the earlier copy of `list` if there is one: it remembers who signed it.
    fn known(&self, list: Crl) -> Arc<Crl> {
        let known = self.newest.iter().find(|known| ***known == list);
        known.cloned().unwrap_or_else(|| Arc::new(list))
    }

    /// Returns the trust of now, or `None` if delivered roots cannot be used, and everything that is wrong.
    pub(super) fn evaluate(&mut self) -> (Option<TrustBundle>, Vec<Told>) {
        let mut told = Vec::new();
        let bundle = match self.bundle() {
            Ok(bundle) => bundle,
            Err(fault) => {
                told.extend(self.bad.iter().cloned());
                told.push((Arc::new(fault), LAST_GOOD_STAYS));
                return (None, told);
            }
        };
        let revocations = self.revocations(&bundle, &mut told);
        told.extend(self.bad.iter().cloned());
        (Some(bundle.without(revocations)), told)
    }

    fn bundle(&self) -> Result<TrustBundle, TrustFault> {
        let bad = TrustFault::Delivered;
        let mut local = self.roots.get(&self.own).cloned().unwrap_or_default();
        if self.files.roots.is_none() || self.files.delivered_too {
            local.extend(self.delivered.local.iter().cloned());
        }
        let mut bundle = if local.is_empty() {
            TrustBundle::without_roots(self.own.clone())
        } else {
            TrustBundle::new(self.own.clone(), local).map_err(bad)?
        };
        let of_files = self.roots.iter().filter(|(domain, _)| **domain != self.own);
        let delivered = self.delivered.federated.iter();
        let delivered = delivered.filter(|(domain, _)| !self.roots.contains_key(*domain));
        for (domain, roots) in of_files {
            bundle = bundle.federated(domain.clone(), roots.clone()).map_err(bad)?;
        }
        for (domain, roots) in delivered {
            bundle = bundle.offered(domain.clone(), roots.clone()).map_err(bad)?;
        }
        Ok(bundle)
    }

    /// The newest list of each issuer and scope that is signed as it should be.
    fn revocations(&mut self, bundle: &TrustBundle, told: &mut Vec<Told>) -> Revocations {
        let policy = self.files.crl_policy;
        let strict = policy == CrlPolicy::Refuse;
        let consequence = if strict { REFUSED } else { LAST_GOOD_STAYS };
        let mut tell = |fault| told.push((Arc::new(fault), consequence));
        let mut revocations = Revocations::new(policy, Arc::clone(&self.denied));
        let (mut current, unsigned) = self.candidates(bundle);
        let mut blind = self.blind.clone();
        for (file, source) in unsigned {
            blind = blind.or(Some(source.to_string()));
            tell(TrustFault::Crl { file, source });
        }
        for Candidate { list, file, is_bad } in &mut current {
            let known = self.newest.iter().find(|known| known.is_of_same_issuer_and_scope(list));
            if let Some((known, source)) = known.and_then(|known| older(list, known)) {
                tell(TrustFault::Crl { file: file.clone(), source });
                (*list, *is_bad) = (known, true);
            }
            let expired = list.is_expired_at(self.clock.now());
            if expired {
                let (issuer, since) = (list.issuer().to_owned(), list.next_update().as_secs());
                tell(TrustFault::Expired { file: file.clone(), issuer, since });
            }
            // Set only where it has a consequence: otherwise trust would change without one.
            revocations.add(Arc::clone(list), strict && (expired || *is_bad));
        }
        if let (Some(reason), true) = (blind, strict) {
            revocations.blinded(reason);
        }
        self.newest = current.into_iter().map(|candidate| candidate.list).collect();
        revocations
    }

    /// The newest list of each issuer and scope among what the files hold, and what is not signed by the
    /// root whose name it bears. In the place of the latter go the last good ones of that name.
    fn candidates(&self, bundle: &TrustBundle) -> (Vec<Candidate>, Vec<(PathBuf, CrlError)>) {
        let mut current: Vec<Candidate> = Vec::new();
        let mut unsigned = Vec::new();
        for (file, (lists, is_bad)) in &self.crls {
            for list in lists {
                let roots = bundle.domains().flat_map(|domain| bundle.roots(domain));
                let mut good = vec![(Arc::clone(list), *is_bad)];
                if let Err(error) = list.check_signature(roots) {
                    unsigned.push((file.clone(), error));
                    let namesakes = self.newest.iter().filter(|old| old.issuer() == list.issuer());
                    good = namesakes.map(|old| (Arc::clone(old), true)).collect();
                }
                for (list, is_bad) in good {
                    let same =
                        |other: &&mut Candidate| other.list.is_of_same_issuer_and_scope(&list);
                    let candidate = |list| Candidate { list, file: file.clone(), is_bad };
                    match current.iter_mut().find(same) {
                        None => current.push(candidate(list)),
                        Some(slot) if list.check_successor_of(&slot.list).is_ok() => {
                            *slot = candidate(list);
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        (current, unsigned)
    }
}

/// A list that may come into force.
struct Candidate {
    list: Arc<Crl>,
    file: PathBuf,
    /// Whether its file should hold another list by now.
    is_bad: bool,
}

/// Returns `known` and the fault if `list` is older than `known`.
fn older(list: &Crl, known: &Arc<Crl>) -> Option<(Arc<Crl>, CrlError)> {
    list.check_successor_of(known).err().map(|error| (Arc::clone(known), error))
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> TrustFault {
    let file = path.to_owned();
    |source| TrustFault::Unreadable { file, source }
}

fn deny_list(path: &Path, text: &[u8]) -> Result<DenyList, TrustFault> {
    let syntax = |line, message| TrustFault::Syntax { file: path.to_owned(), line, message };
    let text = std::str::from_utf8(text).map_err(|error| syntax(1, error.to_string()))?;
    let is_blank = |line: &str| matches!(line.trim(), "" | "---") || line.trim().starts_with('#');
    if text.lines().all(is_blank) {
        return Err(syntax(1, "is empty".to_owned()));
    }
    let entries: Vec<Spanned<String>> = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        syntax(line, error.without_snippet().to_string())
    })?;
    let mut list = DenyList::default();
    for Spanned { value, referenced, .. } in entries {
        list.add(&value).map_err(|source| TrustFault::Denied {
            file: path.to_owned(),
            line: referenced.line(),
            source,
        })?;
    }
    Ok(list)
}
