//! Finds out whose service-account token it is, and so which node's agent is calling, by asking the API server.

mod outline;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, api::PostParams};
use sha2::{Digest, Sha256};

use self::outline::Outline;
use crate::{ApiServer, PodPlaces, client::ApiFault};

/// How long a good answer counts. If the pod is deleted meanwhile, its token ends at once, as the watch tells.
const MEMORY: Duration = Duration::from_secs(30);
/// How long a good answer is kept for times without an API server, unless the token ends earlier.
const KEPT: Duration = Duration::from_hours(24);
/// How long an older answer stands in while the API server does not answer, before it is asked again.
const STAND_IN: Duration = Duration::from_secs(5);
/// How long a refusal counts.
const REFUSAL_MEMORY: Duration = Duration::from_secs(5);
/// The most answers that are remembered: one for each token.
const MAX_REMEMBERED: usize = 16_384;
/// How long the API server may take.
const WITHIN: Duration = Duration::from_secs(5);
/// The most questions that are open at the same time. Those about one token share a lane: the first answer serves them
/// all.
const LANES: usize = 16;

const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// The owner of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentToken {
    /// The node that the token is bound to, itself or by its pod.
    pub node: String,
    /// The caller's name: service account and node.
    pub name: String,
}

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFault {
    /// The token proves nothing, or not enough.
    #[error("{0}")]
    Refused(String),
    /// The token cannot be judged now.
    #[error("{0}")]
    Unknown(String),
}

/// Has the API server judge tokens (`TokenReview`, authentication.k8s.io/v1).
///
/// Whoever reaches the port can have any text judged. Therefore what does not even claim to be an agent's token for us
/// is refused without asking, at most 16 questions are open at once, and answers are remembered.
pub struct TokenJudge {
    api: Api<TokenReview>,
    audience: String,
    /// The accounts that are believed, as the API server names service accounts.
    accounts: BTreeSet<String>,
    places: PodPlaces,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    lanes: [tokio::sync::Mutex<()>; LANES],
}

#[derive(Clone, Debug)]
struct Remembered {
    /// Until when the API server is not asked again.
    fresh_until: Instant,
    /// Until when the answer may stand in; no longer than the token itself is valid.
    until: Instant,
    pod_uid: Option<String>,
    answer: Result<AgentToken, String>,
}

/// Why the API server has not judged a token.
#[derive(Debug)]
struct Unanswered {
    reason: String,
    /// Whether it could not be asked; otherwise it was asked and refused to answer.
    is_away: bool,
}

/// What the API server says of a token that it knows.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    username: String,
    node: Option<String>,
    /// UID and name of the pod that the token is bound to.
    pod: Option<(String, String)>,
}

// === impl TokenJudge ===

impl TokenJudge {
    /// Creates a judge that believes tokens made for `audience` that belong to one of `accounts` (namespace and name).
    pub fn new(
        server: &ApiServer,
        places: PodPlaces,
        audience: String,
        accounts: &[(String, String)],
    ) -> Self {
        let username = |(namespace, name): &(String, String)| {
            format!("system:serviceaccount:{namespace}:{name}")
        };
        Self {
            api: Api::all(server.0.clone()),
            audience,
            accounts: accounts.iter().map(username).collect(),
            places,
            remembered: Mutex::default(),
            lanes: std::array::from_fn(|_| tokio::sync::Mutex::default()),
        }
    }

    /// Returns the owner of the token `bearer`. While the API server cannot be asked, a token that it knew before is
    /// believed until it ends: an agent that restarts meanwhile needs its certificates.
    ///
    /// # Errors
    ///
    /// When its owner is not believed, or the API server cannot be asked about a token that is new to us.
    pub async fn judge(&self, bearer: &str) -> Result<AgentToken, TokenFault> {
        let digest: [u8; 32] = Sha256::digest(bearer).into();
        if let Some(answer) = self.recall(&digest) {
            return answer.map_err(TokenFault::Refused);
        }
        let outline = Outline::read(bearer)
            .ok_or_else(|| TokenFault::Refused("it is no service-account token".to_owned()))?;
        self.check_claims(&outline).map_err(TokenFault::Refused)?;
        let lane = usize::from(digest[0]) % LANES;
        let Some(lane) = self.lanes.get(lane) else {
            return Err(TokenFault::Unknown("no lane".to_owned()));
        };
        let _turn = lane.lock().await;
        if let Some(answer) = self.recall(&digest) {
            return answer.map_err(TokenFault::Refused);
        }
        let judged = match self.ask(bearer).await {
            Ok(judged) => judged,
            Err(Unanswered { reason, is_away }) => {
                let stand_in = is_away.then(|| self.stand_in(&digest)).flatten();
                return stand_in.ok_or(TokenFault::Unknown(reason));
            }
        };
        let (answer, pod_uid) = match judged {
            Ok(known) => {
                let pod_uid = known.pod.as_ref().map(|(uid, _)| uid.clone());
                (self.locate(known).await?, pod_uid)
            }
            Err(refusal) => (Err(refusal), None),
        };
        self.remember(digest, &outline, pod_uid, answer.clone());
        answer.map_err(TokenFault::Refused)
    }

    /// Refuses a token that need not be asked about. None of its claims is believed before the API server has judged
    /// it.
    fn check_claims(&self, outline: &Outline) -> Result<(), String> {
        if !self.accounts.contains(&outline.subject) {
            return Err("its service account is not one of an agent's".to_owned());
        }
        if !outline.audiences.contains(&self.audience) {
            return Err(format!("it was not made for {}", self.audience));
        }
        Ok(())
    }

    async fn ask(&self, bearer: &str) -> Result<Result<Known, String>, Unanswered> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: Some(bearer.to_owned()),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let asked = tokio::time::timeout(WITHIN, self.api.create(&params, &review)).await;
        let what = "asking the API server about a token";
        match asked {
            Ok(Ok(review)) => {
                Ok(read_status(review.status.unwrap_or_default(), &self.audience, &self.accounts))
            }
            Ok(Err(error)) => {
                let fault = ApiFault::new(what, "create on tokenreviews", &error);
                tracing::warn!(%fault, "callers cannot be verified");
                Err(Unanswered { reason: fault.to_string(), is_away: !is_refusal(&error) })
            }
            Err(_elapsed) => {
                let reason = format!("{what}: no answer within {} s", WITHIN.as_secs());
                Err(Unanswered { reason, is_away: true })
            }
        }
    }

    async fn locate(&self, known: Known) -> Result<Result<AgentToken, String>, TokenFault> {
        let Known { username, node, pod } = known;
        let node = match (pod, node) {
            // The server may remember its own answers for some seconds; the watch is newer.
            (Some((uid, name)), claimed) => match self.places.node_of(&uid, &name).await {
                Ok(Some(node)) if claimed.as_ref().is_none_or(|claimed| *claimed == node) => node,
                Ok(_) => return Ok(Err(format!("its pod {name} is gone, or not on that node"))),
                Err(()) => {
                    let reason = "the pods were not listed yet".to_owned();
                    return Err(TokenFault::Unknown(reason));
                }
            },
            (None, Some(node)) => node,
            (None, None) => {
                let reason = "it is bound to no pod: project it into the agent's pod";
                return Ok(Err(reason.to_owned()));
            }
        };
        let account = username.trim_start_matches("system:serviceaccount:").replace(':', "/");
        Ok(Ok(AgentToken { name: format!("{account} on {node}"), node }))
    }

    fn recall(&self, digest: &[u8; 32]) -> Option<Result<AgentToken, String>> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_if_over(&mut remembered, digest);
        let Remembered { fresh_until, answer, .. } = remembered.get(digest)?;
        (*fresh_until > Instant::now()).then(|| answer.clone())
    }

    /// Returns what was known of a token, while the API server cannot be asked. Without it, neither a pod nor a token
    /// that is bound to one can be deleted.
    fn stand_in(&self, digest: &[u8; 32]) -> Option<AgentToken> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_if_over(&mut remembered, digest);
        let entry = remembered.get_mut(digest)?;
        let token = entry.answer.clone().ok()?;
        entry.fresh_until = Instant::now() + STAND_IN;
        tracing::warn!(agent = token.name, "a token that the API server knew before is believed");
        Some(token)
    }

    fn forget_if_over(&self, remembered: &mut HashMap<[u8; 32], Remembered>, digest: &[u8; 32]) {
        let is_over = remembered.get(digest).is_some_and(|entry| {
            entry.until <= Instant::now()
                || entry.pod_uid.as_deref().is_some_and(|uid| self.places.is_gone(uid))
        });
        if is_over {
            remembered.remove(digest);
        }
    }

    fn remember(
        &self,
        digest: [u8; 32],
        outline: &Outline,
        pod_uid: Option<String>,
        answer: Result<AgentToken, String>,
    ) {
        let now = Instant::now();
        let (fresh, kept) = match &answer {
            Ok(_) => (MEMORY, KEPT.min(outline.left())),
            Err(_) => (REFUSAL_MEMORY, REFUSAL_MEMORY.min(outline.left())),
        };
        let (fresh_until, until) = (now + fresh.min(kept), now + kept);
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, entry| entry.until > now);
        }
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(digest, Remembered { fresh_until, until, pod_uid, answer });
        }
    }
}

/// Returns whether the API server heard the question and refused to answer, other than for being busy.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

/// Judges the server's answer. The audience is checked again: a server that knows no audiences answers without them,
/// and its tokens are for anybody.
fn read_status(
    status: TokenReviewStatus,
    audience: &str,
    accounts: &BTreeSet<String>,
) -> Result<Known, String> {
    if status.authenticated != Some(true) {
        let said = status.error.unwrap_or_default();
        return Err(if said.is_empty() {
            "the API server does not know it".to_owned()
        } else {
            format!("the API server says: {said}")
        });
    }
    if !status.audiences.unwrap_or_default().iter().any(|known| known == audience) {
        return Err(format!("it was not made for {audience}"));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    if !accounts.contains(&username) {
        return Err(format!("{username:?} is not the service account of an agent"));
    }
    let mut extra = user.extra.unwrap_or_default();
    let mut only = |key: &str| match extra.remove(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let node = only(NODE);
    let pod = only(POD_UID).zip(only(POD));
    Ok(Known { username, node, pod })
}

#[cfg(test)]
mod tests;
