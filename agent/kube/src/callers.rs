//! Who calls the controller: the API server judges the token and says which node its pod is on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use sha2::{Digest, Sha256};
use sluice_controller::{Caller, Callers, Pending, Refusal};
use tokio::sync::Semaphore;

use crate::hub::Hub;

/// How long an answer counts: a token that was withdrawn is refused after this.
const ACCEPTED_TIME: Duration = Duration::from_mins(1);
const REFUSED_TIME: Duration = Duration::from_secs(10);
/// Answers that are remembered; then the oldest go.
const MAX_ANSWERS: usize = 4096;
/// Questions to the API server at one time.
const MAX_QUESTIONS: usize = 8;
/// How long one may take, waiting included.
const WITHIN: Duration = Duration::from_secs(5);
/// What the API server says of the pod that a token belongs to (KEP-4193; on since Kubernetes 1.32).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Judges tokens by `TokenReview`. Only tokens of pods count, of one service account, made for one
/// audience; the node is that of the token's pod, which the API server knows and the caller cannot choose.
pub struct TokenReviews {
    hub: Arc<Hub>,
    api: Api<TokenReview>,
    audience: String,
    /// `system:serviceaccount:<namespace>:<name>` of the agents.
    user: String,
    answers: Mutex<HashMap<[u8; 32], Answer>>,
    questions: Semaphore,
}

#[derive(Clone)]
struct Answer {
    until: Instant,
    /// The caller, or why it is refused.
    caller: Result<Caller, String>,
}

// === impl TokenReviews ===

impl TokenReviews {
    pub(crate) fn new(
        hub: &Arc<Hub>,
        client: &Client,
        audience: &str,
        namespace: &str,
        account: &str,
    ) -> Self {
        Self {
            hub: Arc::clone(hub),
            api: Api::all(client.clone()),
            audience: audience.to_owned(),
            user: format!("system:serviceaccount:{namespace}:{account}"),
            answers: Mutex::default(),
            questions: Semaphore::new(MAX_QUESTIONS),
        }
    }

    async fn judge(&self, bearer: &str) -> Result<Caller, Refusal> {
        // The token itself is kept nowhere.
        let digest: [u8; 32] = Sha256::digest(bearer.as_bytes()).into();
        if let Some(answer) = self.remembered(&digest) {
            return answer.caller.map_err(|reason| Refusal::BadToken { reason });
        }
        let unknown = |reason: String| Refusal::CallersUnknown { reason };
        let caller = match tokio::time::timeout(WITHIN, self.ask(bearer)).await {
            Ok(asked) => asked.map_err(unknown)?,
            Err(_elapsed) => return Err(unknown("the API server does not answer".to_owned())),
        };
        let time = if caller.is_ok() { ACCEPTED_TIME } else { REFUSED_TIME };
        self.remember(digest, Answer { until: Instant::now() + time, caller: caller.clone() });
        caller.map_err(|reason| Refusal::BadToken { reason })
    }

    fn remembered(&self, digest: &[u8; 32]) -> Option<Answer> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(digest).filter(|answer| answer.until > Instant::now()).cloned()
    }

    fn remember(&self, digest: [u8; 32], answer: Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_ANSWERS {
            let now = Instant::now();
            answers.retain(|_, answer| answer.until > now);
        }
        // Refusals first: whoever floods us with bad tokens must not push the agents' out.
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, answer| answer.caller.is_ok());
        }
        if answers.len() < MAX_ANSWERS {
            answers.insert(digest, answer);
        }
    }

    /// The outer error says why it cannot be judged now, the inner why it is refused.
    async fn ask(&self, bearer: &str) -> Result<Result<Caller, String>, String> {
        let _turn = self.questions.acquire().await.map_err(|error| error.to_string())?;
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: Some(bearer.to_owned()),
            },
            status: None,
        };
        let review = self
            .api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| crate::client::innermost(&error))?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Ok(Err("the API server does not accept it".to_owned()));
        }
        // A server that knows no audiences would let any token of the cluster pass.
        if !status.audiences.unwrap_or_default().contains(&self.audience) {
            return Ok(Err(format!("it is not for the audience {:?}", self.audience)));
        }
        Ok(self.caller(&status.user.unwrap_or_default()))
    }

    fn caller(&self, user: &UserInfo) -> Result<Caller, String> {
        let name = user.username.clone().unwrap_or_default();
        if name != self.user {
            return Err(format!("it is {name}'s, not {}'s", self.user));
        }
        let extra = |key: &str| user.extra.as_ref()?.get(key)?.first().cloned();
        let pod = extra(POD_UID).ok_or("it is bound to no pod")?;
        let known = || Some(self.hub.cluster().pod(&pod)?.node.to_string());
        let node = extra(NODE_NAME).or_else(known).filter(|node| !node.is_empty());
        let node = node.ok_or("the node of its pod is not known")?;
        Ok(Caller { name: format!("agent of {node}"), node })
    }
}

impl Callers for TokenReviews {
    fn authenticate<'a>(&'a self, bearer: &'a str) -> Pending<'a, Result<Caller, Refusal>> {
        Box::pin(self.judge(bearer))
    }
}
